"""GraceEmbedder: a sentence-transformers model whose embeddings come from a text and the rationale written about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn
from tqdm.auto import tqdm

from grace_retrieval.batching import MicroBatcher
from grace_retrieval.cache import Fingerprint, RationaleCache, open_cache
from grace_retrieval.engines.by_name import DEFAULT_ENGINE, check_engine
from grace_retrieval.errors import InputError, ModelLoadError
from grace_retrieval.loading import BUNDLED_MODELS, resolve_model
from grace_retrieval.model_card import GraceModelCardData
from grace_retrieval.prompt import DOCUMENT_PROMPT, QUERY_PROMPT, check_texts
from grace_retrieval.rationale import Rationale
from grace_retrieval.rationale_transformer import OnTruncation, RationaleTransformer
from grace_retrieval.vector_identity import VectorIdentity

if TYPE_CHECKING:
    from grace_retrieval.explain import Explanation

__all__ = ["GraceEmbedder", "Role"]

Role = Literal["query", "document"]

WINDOW = 2048
"""Texts handed to the engine at once, which sorts them by length and forms its own batches."""

# Arguments of SentenceTransformer.encode behind show_progress_bar, in their order.
_POSITIONAL = (
    "output_value",
    "precision",
    "convert_to_numpy",
    "convert_to_tensor",
    "device",
    "normalize_embeddings",
    "truncate_dim",
    "pool",
    "chunk_size",
)

_MODULE = f"{RationaleTransformer.__module__}.{RationaleTransformer.__qualname__}"


class GraceEmbedder(SentenceTransformer):
    """Embeds texts through written rationales. Use it wherever a SentenceTransformer is used.

    A text is shown to a causal language model, which writes what the text means; the embedding is the normalised
    mean of the hidden states over text and rationale. Rationales are cached: a text is never generated for twice.

    Batches are formed by length under a token budget whatever `batch_size` says.

    Args:
        model: "grace-nano" (ships with the package), a folder, or a hub name: a saved GraceEmbedder or any causal LM.
        system_prompt: One prompt for all texts, instead of the model's prompts for queries, documents and others.
        cache: "default" (a SQLite file, see `grace cache path`), a path, "memory", a RationaleCache, or None for none.
        device: Such as "cuda" or "cpu"; None takes the best there is.
        max_new_tokens: Most tokens of a rationale; None keeps the model's setting (512 for a plain LM).
        max_seq_length: Most tokens of a prompt with its text; None keeps the model's setting (1024 for a plain LM).
        temperature: 0 is greedy: the same text gives the same rationale. None keeps the model's setting.
        top_p: Nucleus of the sampling; None keeps the model's setting.
        top_k: Most probable tokens kept when sampling; None keeps the model's setting.
        seed: Seed of the sampling; every text has its own stream. None keeps the model's setting.
        on_truncation: "warn" and shorten a text that is too long, raise an "error", or "ignore".
        max_batch_tokens: Most tokens held in a batch; None takes a quarter of the free memory, within bounds.
        engine: What runs the policy: "transformers", "vllm" (an extra), or an engine of another package by its name.
        engine_options: Options of the engine, such as {"max_model_len": 2048} for vLLM; JSON values.
        **kwargs: Arguments of SentenceTransformer: prompts, default_prompt_name, truncate_dim, revision, token,
            cache_folder, local_files_only, trust_remote_code, model_kwargs, modules, ...

    Raises:
        ModelLoadError: If the model is missing, damaged, of another kind, or asks for remote code.
        InputError: If an option is out of range.

    Example:
        >>> embedder = GraceEmbedder("grace-nano", cache=None)
        >>> embedder.encode(["Why do tides follow the moon?", "Bread rises by yeast."]).shape
        (2, 256)
    """

    default_huggingface_organization = None
    _default_prompts = {"query": None, "document": None}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        model: str | os.PathLike[str] | None = "grace-nano",
        *,
        system_prompt: str | None = None,
        cache: str | os.PathLike[str] | RationaleCache | None = "default",
        device: str | None = None,
        max_new_tokens: int | None = None,
        max_seq_length: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        on_truncation: OnTruncation = "warn",
        max_batch_tokens: int | None = None,
        engine: str = DEFAULT_ENGINE,
        engine_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_engine(engine, engine_options)
        if (backend := kwargs.get("backend", "torch")) != "torch":
            raise InputError(
                f"backend={backend!r}: policies that write run in torch; leave backend out. What runs the "
                "policy is chosen by engine=."
            )
        modules = kwargs.pop("modules", None)
        path = None if modules is not None or model is None else resolve_model(model)
        if system_prompt is not None:
            if not isinstance(system_prompt, str):
                raise InputError(f"system_prompt is {type(system_prompt).__name__}: give a string.")
            kwargs.setdefault("prompts", {"query": system_prompt, "document": system_prompt})
        if modules is not None:
            kwargs["prompts"] = {"query": QUERY_PROMPT, "document": DOCUMENT_PROMPT, **(kwargs.get("prompts") or {})}
        name = str(model) if model is not None and modules is None else ""
        kwargs.setdefault(
            "model_card_data",
            # No widget examples: they would be generated for whenever a model is saved.
            GraceModelCardData(
                model_name=name.rstrip("/").split("/")[-1] or None,
                local_files_only=path is None or os.path.isdir(path),
                generate_widget_examples=False,
            ),
        )
        try:
            super().__init__(path, modules=modules, device=device, **kwargs)
        except (OSError, ValueError) as error:
            if isinstance(error, ModelLoadError) or (isinstance(error, ValueError) and "remote_code" not in str(error)):
                raise
            raise ModelLoadError(f"Cannot load {name!r}: {error}") from error
        if not isinstance(self[0], RationaleTransformer):
            raise ModelLoadError(
                f"{name!r} is a sentence-transformers model that writes no rationales (its first module is "
                f"{type(self[0]).__name__}). Open it with SentenceTransformer, or give a causal language model."
            )
        self.writer.name = name if name in BUNDLED_MODELS else path or self.writer.name
        self.writer.on_truncation = on_truncation
        self.writer.configure(
            system_prompt=system_prompt,
            max_new_tokens=max_new_tokens,
            max_seq_length=max_seq_length,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        self.writer.cache = open_cache(cache)
        self.writer.max_batch_tokens = max_batch_tokens
        if engine != DEFAULT_ENGINE or engine_options:
            self.writer.use_engine(engine, engine_options)
            _ = self.writer.engine  # a missing extra or an unknown option is said now, not at the first text
        self._batcher = MicroBatcher()

    @property
    def writer(self) -> RationaleTransformer:
        """The first module: policy, prompts, cache and engine."""
        return cast(RationaleTransformer, self[0])

    @property
    def cache(self) -> RationaleCache | None:
        """Where rationales are kept."""
        return self.writer.cache

    def fingerprint(self, role: Role | None = None) -> Fingerprint:
        """Identity of everything that may change a vector: compare it before mixing vectors of two sources.

        Args:
            role: "query", "document", or None for `encode` without a role.
        """
        return self.writer.fingerprint(role, self.prompts.get(role) if role else None)

    def vector_identity(self, rationale: bool | None = None) -> VectorIdentity:
        """What this embedder's vectors are made with: store it beside vectors, compare before searching among them.

        Args:
            rationale: Whether the vectors are made with rationales; None is the model's setting.
        """
        document, query = (
            self.writer.fingerprint(role, self.prompts.get(role), rationale) for role in ("document", "query")
        )
        dimension = self.truncate_dim or self.writer.get_embedding_dimension()
        return VectorIdentity(document=document, query=query, dimension=dimension)

    # ------------------------------------------------------------------ embedding

    def encode(  # type: ignore[override]
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *args: Any,
        rationale: bool | None = None,
        rationales: Sequence[str | Rationale] | str | Rationale | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed texts. Arguments and results are those of `SentenceTransformer.encode`, and two more.

        Args:
            inputs: A text or a list of texts. Blank ones become zeros, without a model call.
            prompt_name: Name of a system prompt in `prompts`.
            prompt: System prompt for this call; "" for none.
            batch_size: Kept for compatibility: batches are formed by tokens.
            show_progress_bar: Whether to show progress; None shows it on a terminal for 100 texts or more.
            *args: As in SentenceTransformer.
            rationale: True embeds with rationales, False the text alone without generating; None as the model is set.
            rationales: Given rationales, one a text: embedded as they are instead of generating any.
            **kwargs: As in SentenceTransformer: precision, convert_to_tensor, truncate_dim, device, pool, ...

        Returns:
            Embeddings. Shape: (texts, dim), float32, of length 1; (dim,) for a single text.

        Raises:
            InputError: If an input is not a str, or the number of rationales is not that of texts.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give a positive number.")
        single = isinstance(inputs, str)
        items = _items(inputs, rationales)
        # The same text is rendered, embedded and looked up once.
        unique = list(dict.fromkeys(items))
        places = {item: place for place, item in enumerate(unique)}
        # Cutting dimensions comes after Normalize, so lengths are made 1 again.
        kwargs = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        kwargs |= {"normalize_embeddings": True, "rationale": rationale}
        if kwargs.get("output_value", "sentence_embedding") != "sentence_embedding":
            kwargs["token_states"] = True
        elif kwargs.get("pool") is None and not isinstance(kwargs.get("device"), list):
            batch_size = max(batch_size, WINDOW)
        with self._progress(len(unique), show_progress_bar):
            found = super().encode(unique, prompt_name, prompt, batch_size, False, **kwargs)
        if single:
            return found[0]
        order = [places[item] for item in items]
        if not items or len(unique) == len(items):
            return found if items else self._empty(found, kwargs.get("truncate_dim"))
        return [found[place] for place in order] if isinstance(found, list) else found[order]

    def _empty(self, found: Any, truncate_dim: int | None) -> Any:
        """No vectors, of the right width."""
        dim = truncate_dim or self.get_embedding_dimension() or 0
        if isinstance(found, np.ndarray):
            return np.zeros((0, dim), dtype=np.float32)
        return torch.zeros(0, dim) if isinstance(found, torch.Tensor) else found

    @contextmanager
    def _progress(self, texts: int, show: bool | None) -> Iterator[None]:
        """Count texts as they are embedded, not batches. `show` None: on a terminal, for 100 texts or more."""
        if show is None:
            show = texts >= 100 and os.isatty(2)
        if not show:
            yield
            return
        with tqdm(total=texts, desc="Embedding", unit="text") as bar:
            self.writer.on_row = bar.update
            try:
                yield
            finally:
                self.writer.on_row = None

    # LangChain's Embeddings protocol, by method names.

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents for a vector store (LangChain's protocol).

        Raises:
            InputError: If `texts` is no list of strings.
        """
        return cast("list[list[float]]", self.encode_document(_several(texts)).tolist())

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """Embed queries, one vector a text.

        Raises:
            InputError: If `texts` is no list of strings.
        """
        return cast("list[list[float]]", self.encode_query(_several(texts)).tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a query (LangChain's protocol).

        Raises:
            InputError: If `text` is no string.
        """
        return self.embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents on a thread of the embedder's own, together with what waits meanwhile; see MicroBatcher."""
        return await self._batcher.run(self.embed_documents, _several(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query on a thread of the embedder's own, together with what waits meanwhile; see MicroBatcher."""
        return (await self._batcher.run(self.embed_queries, [text]))[0]

    # ------------------------------------------------------------------ rationales

    def rationales(self, texts: str | Sequence[str], role: Role | None = None) -> list[Rationale]:
        """Write, or look up, the rationales of texts.

        Args:
            texts: Texts; a single one counts as a list of one.
            role: "query", "document", or None: which prompt is used.

        Returns:
            One Rationale a text; blank texts have an empty one.

        Raises:
            InputError: If a text is not a str, or the role is unknown.
        """
        return cast("list[Rationale]", self._rationales(texts, role, cached_only=False))

    def cached_rationales(self, texts: str | Sequence[str], role: Role | None = None) -> list[Rationale | None]:
        """Look up the rationales of texts that were embedded before. Never generates.

        Args:
            texts: Texts, as they were embedded; a single one counts as a list of one.
            role: "query", "document", or None: which prompt was used.

        Returns:
            One Rationale a text, or None where the cache has none (or there is no cache).

        Raises:
            InputError: If a text is not a str, or the role is unknown.
        """
        return self._rationales(texts, role, cached_only=True)

    def _rationales(
        self, texts: str | Sequence[str], role: Role | None, *, cached_only: bool
    ) -> list[Rationale | None]:
        if role not in (None, "query", "document"):
            raise InputError(f"role={role!r}: give 'query', 'document' or None.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        blank = Rationale(text="", token_ids=(), truncated=False, text_truncated=False)
        found: dict[str, Rationale | None] = {text: blank for text in texts if not text.strip()}
        wanted = [text for text in dict.fromkeys(texts) if text not in found]
        prompt = self.prompts.get(role) if role else None
        with self._progress(len(wanted), None):
            written = self.writer.rationales(wanted, prompt=prompt, task=role, cached_only=cached_only)
            found.update(zip(wanted, written, strict=True))
        return [found[text] for text in texts]

    # ------------------------------------------------------------------ explanations

    @overload
    def explain(
        self,
        query: str,
        documents: list[Any] | tuple[Any, ...],
        *,
        query_rationale: str | Rationale | None = ...,
        document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = ...,
        rationale: bool | None = ...,
        truncate_dim: int | None = ...,
    ) -> list[Explanation]: ...

    @overload
    def explain(
        self,
        query: str,
        documents: Any,
        *,
        query_rationale: str | Rationale | None = ...,
        document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = ...,
        rationale: bool | None = ...,
        truncate_dim: int | None = ...,
    ) -> Explanation: ...

    def explain(
        self,
        query: str,
        documents: Any,
        *,
        query_rationale: str | Rationale | None = None,
        document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = None,
        rationale: bool | None = None,
        truncate_dim: int | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain why documents get their scores for a query: contributions of tokens, which add up to the score.

        The model is run once over each text with its rationale. Nothing is generated that the cache holds.

        Args:
            query: A query.
            documents: A document, or a list or tuple of them: strings, hits of a GraceIndex, LangChain documents,
                LlamaIndex nodes.
            query_rationale: Given rationale of the query; None looks it up or writes it.
            document_rationales: Given rationales, one a document. None takes those that came with hits, and looks up or
                writes the others.
            rationale: False explains scores of the texts alone.
            truncate_dim: Dimensions to keep, as in `encode`; None keeps the embedder's setting.

        Returns:
            An Explanation for a document; a list of them, in the order of the documents and with ranks, for several.

        Raises:
            InputError: If a document is of another kind, or the number of rationales is not that of documents.

        Example:
            >>> embedder = GraceEmbedder("grace-nano", cache=None)
            >>> explanation = embedder.explain("why does dough grow?", "Bread rises because yeast makes gas.")
            >>> abs(explanation.document.contributions.sum() - explanation.score) < 1e-9
            True
        """
        from grace_retrieval.explain.explainer import explain

        return explain(
            self,
            query,
            documents,
            query_rationale=query_rationale,
            document_rationales=document_rationales,
            rationale=rationale,
            truncate_dim=truncate_dim,
        )

    # ------------------------------------------------------------------ loading

    def _load_default_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """Turn a plain causal LM into policy, mean pooling and normalisation."""
        if args:  # positional since some releases: token, cache_folder, ...
            names = ("token", "cache_folder", "revision", "trust_remote_code", "local_files_only")
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        writer = RationaleTransformer.load(model_name_or_path, **kwargs)
        for role, prompt in (("query", QUERY_PROMPT), ("document", DOCUMENT_PROMPT)):
            if self.prompts.get(role) is None:
                self.prompts[role] = prompt
        modules: list[nn.Module] = [
            writer,
            Pooling(writer.get_embedding_dimension(), pooling_mode="mean", include_prompt=False),
            Normalize(),
        ]
        return modules, {}

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        """Know our own module; every other class takes the usual way, with its check for remote code."""
        if class_ref == _MODULE:
            return RationaleTransformer
        return super()._load_module_class_from_ref(class_ref, *args, **kwargs)


def _items(inputs: Any, rationales: Any) -> list[Any]:
    """Texts, or pairs of text and given rationale; anything else is refused."""
    if isinstance(inputs, str):
        inputs = [inputs]
    elif isinstance(inputs, (bytes, bytearray)) or not hasattr(inputs, "__iter__"):
        check_texts([inputs])
    texts = list(inputs)
    check_texts(texts)
    return texts if rationales is None else list(zip(texts, _given(rationales, len(texts)), strict=True))


def _several(texts: Any) -> list[str]:
    """A list of texts; a single one is refused rather than taken for a list of its characters."""
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise InputError(f"Several texts are given as a list, not as {type(texts).__name__}: write [text].")
    return list(texts)


def _given(rationales: Sequence[str | Rationale] | str | Rationale, texts: int) -> list[Any]:
    """Check given rationales and take the token ids where they are known."""
    given = [rationales] if isinstance(rationales, (str, Rationale)) else list(rationales)
    if len(given) != texts:
        raise InputError(f"{len(given)} rationales for {texts} texts: give one a text ('' for none).")
    check_texts([r.text if isinstance(r, Rationale) else r for r in given], what="rationale")
    return [r.token_ids if isinstance(r, Rationale) else r for r in given]
