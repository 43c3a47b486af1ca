"""RationaleTransformer: the sentence-transformers module that writes a rationale and pools over text and rationale.

`preprocess` renders and tokenises, and never generates. `forward` finds or generates the rationales. For inference the
engine has pooled on the way, and the stock Pooling behind this module sees one vector a text; with gradients, or when
token states are asked for, it sees every token and leaves out the prefix by `prompt_length`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from sentence_transformers.base.modules import InputModule

from grace_retrieval.cache import CachedRationale, Fingerprint, RationaleCache, open_cache
from grace_retrieval.cache.forking import ForkSafeLock
from grace_retrieval.engine import RationaleEngine, RationaleRequest, SamplingOptions
from grace_retrieval.engines.by_name import DEFAULT_ENGINE, LoadedPolicy, check_engine, make_engine
from grace_retrieval.errors import InputError
from grace_retrieval.features import build_features, pad_rows, read_requests
from grace_retrieval.identity import PolicyIdentity
from grace_retrieval.loading import end_tokens, load_policy
from grace_retrieval.prompt import (
    DEFAULT_PROMPT,
    RationalePrompt,
    RenderedText,
    TruncationWarning,
    check_texts,
)
from grace_retrieval.rationale import Rationale
from grace_retrieval.source import RationaleSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["RationaleTransformer"]

OnTruncation = Literal["warn", "error", "ignore"]


class RationaleTransformer(InputModule):
    """Input module of a GraceEmbedder: a policy, its tokenizer and how rationales are made.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        system_prompt: Prompt of texts without a role.
        max_seq_length: Most tokens of prompt and text; longer texts are shortened. None: 1024, or what the model's
            context leaves beside the rationale.
        max_new_tokens: Most tokens of a rationale. None: 512, or half of the model's context if that is less.
        temperature: See SamplingOptions; 0 is greedy.
        top_p: See SamplingOptions.
        top_k: See SamplingOptions.
        seed: See SamplingOptions.
        rationale: Whether rationales are used at all, unless a call says otherwise.
        on_truncation: What to do about a text that is too long: "warn" and shorten, raise an "error", or "ignore".
        cache: A RationaleCache, a path, "default", "memory" or None; see `open_cache`.
        name: Name of the model, for messages.
        revision: Revision of a model on the hub.

    Raises:
        InputError: If an option is out of range.
    """

    config_file_name = "grace_config.json"
    config_keys = [  # noqa: RUF012 - the base class declares it so
        "system_prompt",
        "max_seq_length",
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "rationale",
    ]
    tokenizer: PreTrainedTokenizerBase
    forward_kwargs = {"rationale", "token_states", "task"}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str = DEFAULT_PROMPT,
        max_seq_length: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        rationale: bool = True,
        on_truncation: OnTruncation = "warn",
        cache: Any = None,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.tokenizer = tokenizer
        self.rationale = rationale
        self.name = name
        self.revision = revision
        self.on_truncation = on_truncation
        self.max_new_tokens = min(512, self._context() // 2)
        self._max_seq_length = 0
        self.sampling = SamplingOptions()
        self.configure(
            system_prompt=system_prompt,
            max_seq_length=max_seq_length,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        self.cache: RationaleCache | None = open_cache(cache)
        self._engine: RationaleEngine | None = None
        self._engine_name, self._engine_options = DEFAULT_ENGINE, dict[str, Any]()
        self._prompts: dict[tuple[str, str], RationalePrompt] = {}
        self._identity = PolicyIdentity()
        self.tokenizer_lock = ForkSafeLock()
        self.max_batch_tokens: int | None = None
        self.on_row: Callable[[], object] | None = None

    def configure(
        self,
        *,
        system_prompt: str | None = None,
        max_seq_length: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Change options; None leaves one as it is. See the class for their meaning.

        Raises:
            InputError: If an option is out of range.
        """
        if system_prompt is not None:
            self.system_prompt = system_prompt
        if max_new_tokens is not None:
            most = self._context() - 16
            if not (isinstance(max_new_tokens, Integral) and 0 <= max_new_tokens <= most):
                raise InputError(
                    f"max_new_tokens={max_new_tokens!r}: give 0 (no rationale) to {most}, so that a text fits beside "
                    f"the rationale into the model's {self._context()} positions."
                )
            self.max_new_tokens = max_new_tokens
        room = self._context() - self.max_new_tokens
        self.max_seq_length = min(self._max_seq_length or 1024, room) if max_seq_length is None else max_seq_length
        changes = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        self.sampling = replace(self.sampling, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    def get_config_dict(self) -> dict[str, Any]:
        """Options as saved in grace_config.json."""
        return {
            "system_prompt": self.system_prompt,
            "max_seq_length": self.max_seq_length,
            "max_new_tokens": self.max_new_tokens,
            **asdict(self.sampling),
            "rationale": self.rationale,
        }

    @property
    def on_truncation(self) -> OnTruncation:
        """What to do about a text that is too long: "warn" and shorten, raise an "error", or "ignore"."""
        return self._on_truncation

    @on_truncation.setter
    def on_truncation(self, value: OnTruncation) -> None:
        if value not in ("warn", "error", "ignore"):
            raise InputError(f"on_truncation={value!r}: give 'warn', 'error' or 'ignore'.")
        self._on_truncation = value

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a prompt with its text; the rationale comes on top."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        most = self._context() - self.max_new_tokens
        if not (isinstance(value, Integral) and 1 <= value <= most):
            raise InputError(
                f"max_seq_length={value!r}: give a whole number from 1 to {most} (the model's {self._context()} "
                f"positions less max_new_tokens={self.max_new_tokens})."
            )
        self._max_seq_length = value

    def _context(self) -> int:
        """Positions of the model; as good as unlimited for models that state none."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def engine(self) -> RationaleEngine:
        """The engine that runs the policy.

        One that is put in place by hand is described by its `family` and, if it has them, its `engine_options`: copies
        of the module, and indexes that are opened again, make it by these.

        Raises:
            InputError: If there is no engine of the module's `engine_name`, or it has no such option.
        """
        if self._engine is None:
            policy = LoadedPolicy(
                name=self.name,
                revision=self.revision,
                model=self.model,
                tokenizer=self.tokenizer,
                end_tokens=tuple(end_tokens(self.model, self.tokenizer)),
                max_batch_tokens=self.max_batch_tokens,
                max_length=self.max_seq_length + self.max_new_tokens,
            )
            self._engine = make_engine(self.engine_name, self.engine_options, policy)
        return self._engine

    @engine.setter
    def engine(self, engine: RationaleEngine) -> None:
        self._engine = engine
        self._engine_name = engine.family
        self._engine_options = dict(getattr(engine, "engine_options", None) or {})

    @property
    def engine_name(self) -> str:
        """Name by which the engine is made."""
        return self._engine_name

    @property
    def engine_options(self) -> Mapping[str, Any]:
        """Options with which the engine is made; JSON values."""
        return self._engine_options

    def use_engine(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Run the policy by an engine of a name from now on. It is made when it is first used.

        Args:
            name: "transformers", "vllm", or the name of an entry point in the group "grace_retrieval.engines".
            options: Options of the engine; JSON values.

        Raises:
            InputError: If there is no such engine, or the options are no JSON object.
        """
        self._engine_name, self._engine_options = name, check_engine(name, options)
        self._engine = None

    def prompt(self, system_prompt: str | None) -> RationalePrompt:
        """The rendered form of a system prompt; None is the module's own.

        Raises:
            InputError: If it is no string, or leaves no room for a text.
        """
        system_prompt = self.system_prompt if system_prompt is None else system_prompt
        if not isinstance(system_prompt, str):
            raise InputError(f"system_prompt is {type(system_prompt).__name__}: give a string.")
        key = (system_prompt, str(self.tokenizer.chat_template))
        if key not in self._prompts:
            self._prompts[key] = RationalePrompt(self.tokenizer, system_prompt)
        prompt = self._prompts[key]
        length, room = len(prompt.prefix_ids) + len(prompt.suffix_ids), self._context() - self.max_new_tokens
        if length >= room:
            raise InputError(
                f"System prompt and chat template come to {length} tokens, which leaves no room for a text: the model "
                f"has {self._context()} positions, max_new_tokens={self.max_new_tokens} of them for the rationale."
            )
        return prompt

    def get_embedding_dimension(self) -> int:
        """Number of dimensions of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    # ------------------------------------------------------------------ text → features

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Render and tokenise. Generates nothing.

        Args:
            inputs: Texts, or pairs (text, rationale) with a given rationale: a str or its token ids.
            prompt: System prompt; None is the module's own, "" none.
            task: Role of the texts, unused here: it goes with the prompt.
            **kwargs: Ignored, as sentence-transformers passes options of `forward` too.

        Returns:
            Features: input_ids and attention_mask of shape (batch, tokens), padded on the right; text_length and
            rationale_length of shape (batch,), where a text_length of 0 marks a blank text and a rationale_length
            of -1 a rationale to be generated; prompt_length, an int.

        Raises:
            InputError: If an input is not a str (or a pair), or too long and `on_truncation` is "error".
        """
        try:
            return self._preprocess(inputs, prompt)
        except (TypeError, AttributeError) as error:
            # sentence-transformers would take these for an old module and embed something else.
            raise InputError(f"The texts cannot be tokenised: {type(error).__name__}: {error}") from error

    def _preprocess(self, inputs: Sequence[Any], prompt: str | None) -> dict[str, Any]:
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, None) for item in inputs]
        check_texts([text for text, _ in pairs])
        template = self.prompt(prompt)
        with self.tokenizer_lock:  # a fast tokenizer cannot be used by two threads at once
            # A blank text is never shown to the policy; only its length of 0 matters.
            rendered = template.render(
                [text if text.strip() else "" for text, _ in pairs], max_length=self.max_seq_length
            )
            given = [self._given_ids(template, rationale) for _, rationale in pairs]
        self._report_truncation(rendered)
        return build_features(rendered, given, self._pad_token)

    @property
    def _pad_token(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _given_ids(self, template: RationalePrompt, rationale: Any) -> tuple[int, ...] | None:
        if rationale is None:
            return None
        ids = template.rationale_ids([rationale])[0] if isinstance(rationale, str) else tuple(map(int, rationale))
        if len(ids) > (most := self._context() - self.max_seq_length):
            raise InputError(f"A given rationale has {len(ids)} tokens; at most {most} fit beside the text.")
        return ids

    def _report_truncation(self, rendered: Sequence[RenderedText]) -> None:
        cut = [index for index, text in enumerate(rendered) if text.truncated]
        if not cut or self.on_truncation == "ignore":
            return
        limit = f"max_seq_length={self.max_seq_length} tokens with their prompt"
        message = f"{len(cut)} of {len(rendered)} texts are longer than {limit}"
        if self.on_truncation == "error":
            raise InputError(
                f"{message} (the first is number {cut[0]} of its batch). Split them or raise max_seq_length."
            )
        warnings.warn(f"{message} and were shortened at the end.", TruncationWarning, stacklevel=2)

    # ------------------------------------------------------------------ features → vectors

    def forward(
        self,
        features: dict[str, Any],
        rationale: bool | None = None,
        token_states: bool = False,
        task: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add token_embeddings: one pooled vector a text, or all states with gradients or `token_states`.

        Args:
            features: From `preprocess`.
            rationale: Whether to use rationales; None is the module's setting.
            token_states: Whether to return the states of all tokens, prefix included.
            task: Role of the texts ("query", "document" or None), part of the cache's key.
            **kwargs: Ignored.

        Returns:
            A copy of the features with token_embeddings of shape (batch, tokens, hidden), attention_mask of shape
            (batch, tokens) and prompt_length, the number of leading tokens that pooling leaves out.
        """
        rationale = self.rationale if rationale is None else rationale
        requests = read_requests(features, self.max_new_tokens if rationale else 0)
        features = dict(features)
        if torch.is_grad_enabled() or token_states:
            with torch.no_grad():
                rows = self.rows(requests, task) if any(r.max_new_tokens for r in requests) else None
            return self._with_token_states(features, requests, rows)
        filled = [index for index, length in enumerate(features["text_length"].tolist()) if length]
        vectors = torch.zeros(len(requests), self.get_embedding_dimension())
        rows = self.rows([requests[index] for index in filled], task)
        for index, row in zip(filled, rows, strict=True):
            vectors[index] = torch.from_numpy(row.vector.copy())
        device = features["input_ids"].device
        features["token_embeddings"] = vectors[:, None].to(device)
        features["attention_mask"] = torch.ones(len(requests), 1, dtype=torch.long, device=device)
        features["prompt_length"] = 0
        return features

    def rows(self, requests: Sequence[RationaleRequest], task: str | None) -> list[CachedRationale]:
        """Rationales and pooled vectors of prompts, from the cache or the engine.

        Args:
            requests: Prompts of one system prompt.
            task: Role of the texts.

        Returns:
            One row a request.
        """
        source = RationaleSource(self.engine, self.cache, self.decode)
        return source.get(
            requests,
            self.sampling,
            lambda: self._fingerprint(requests[0], task),
            self.on_row or (lambda: None),
        )

    def rationales(
        self, texts: Sequence[str], *, prompt: str | None, task: str | None, cached_only: bool = False
    ) -> list[Rationale | None]:
        """Rationales of texts that are not blank.

        Args:
            texts: Texts.
            prompt: System prompt; None is the module's own.
            task: Role of the texts.
            cached_only: Whether to look up only: a text whose rationale is not in the cache has None.

        Returns:
            One Rationale a text.
        """
        with self.tokenizer_lock:
            rendered = self.prompt(prompt).render(texts, max_length=self.max_seq_length)
        self._report_truncation(rendered)
        requests = [
            RationaleRequest(
                input_ids=text.input_ids, prefix_length=text.prefix_length, max_new_tokens=self.max_new_tokens
            )
            for text in rendered
        ]
        if cached_only:
            source = RationaleSource(self.engine, self.cache, self.decode)
            rows = source.find(requests, lambda: self._fingerprint(requests[0], task))
        else:
            rows = [*self.rows(requests, task)]
        return [
            None
            if row is None
            else Rationale(
                text=row.text,
                token_ids=row.token_ids,
                truncated=row.finish_reason == "length",
                text_truncated=text.truncated,
            )
            for row, text in zip(rows, rendered, strict=True)
        ]

    def _with_token_states(
        self,
        features: dict[str, Any],
        requests: Sequence[RationaleRequest],
        rows: Sequence[CachedRationale] | None,
    ) -> dict[str, Any]:
        """Run the policy over whole sequences, so that every token's state is there (and differentiable)."""
        if rows is not None:
            device = features["input_ids"].device
            ids, mask = pad_rows(
                [request.input_ids + row.token_ids for request, row in zip(requests, rows, strict=True)],
                self._pad_token,
            )
            features["input_ids"], features["attention_mask"] = ids.to(device), mask.to(device)
        with getattr(self.engine, "lock", threading.Lock()):
            output = self.model.base_model(
                input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False
            )
        features["token_embeddings"] = output.last_hidden_state
        return features

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a rationale; <think> tags stay, end tokens do not."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # ------------------------------------------------------------------ identity

    def fingerprint(
        self, task: str | None = None, prompt: str | None = None, rationale: bool | None = None
    ) -> Fingerprint:
        """Identity of everything that may change a rationale or a vector.

        Args:
            task: Role: "query" or "document"; anything else counts as none.
            prompt: System prompt; None is the module's own.
            rationale: Whether rationales are used; None is the module's setting.
        """
        rationale = self.rationale if rationale is None else rationale
        weights, tokenizer = self._identity.hashes(self.model, self.tokenizer)
        return Fingerprint(
            model=self.name,
            weights=weights,
            tokenizer=tokenizer,
            prompt=self.system_prompt if prompt is None else prompt,
            role=task if task in ("query", "document") else "",
            generation={"max_new_tokens": self.max_new_tokens, **self.sampling.identity()} if rationale else {},
            budget={"max_seq_length": self.max_seq_length},
            dtype=self.engine.dtype,
            engine=self.engine.family,
        )

    def _fingerprint(self, request: RationaleRequest, task: str | None) -> Fingerprint:
        prefix = request.input_ids[: request.prefix_length]
        known = [prompt.system_prompt for prompt in list(self._prompts.values()) if prompt.prefix_ids == prefix]
        prompt = known[0] if known else self.decode(prefix)
        return self.fingerprint(task, prompt, rationale=request.max_new_tokens > 0)

    # ------------------------------------------------------------------ save and load

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save policy, tokenizer and options. Never a pickle: weights go to safetensors."""
        self.model.save_pretrained(output_path)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> Self:
        """Load a saved module, or make one from a plain causal LM of transformers.

        Args:
            model_name_or_path: Folder or hub name.
            *args: None; part of the base class's signature.
            **kwargs: What sentence-transformers passes: subfolder, token, cache_folder, revision, local_files_only,
                trust_remote_code, model_kwargs, processor_kwargs, config_kwargs, backend.

        Raises:
            ModelLoadError: If the folder is missing, damaged, of another kind, or asks for remote code.
        """
        hub = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision", "local_files_only", "subfolder")}
        config = cls.load_config(model_name_or_path, **{key: value for key, value in hub.items() if value is not None})
        options = {key: value for key, value in config.items() if key in cls.config_keys}
        model, tokenizer = load_policy(model_name_or_path, **kwargs)
        return cls(model, tokenizer, name=str(model_name_or_path), revision=kwargs.get("revision"), **options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a process: the engine, locks and callbacks."""
        state = dict(self.__dict__)
        for name in ("_engine", "_identity", "tokenizer_lock", "on_row"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make them anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._engine, self.on_row = None, None
        self._identity = PolicyIdentity()
        self.tokenizer_lock = ForkSafeLock()
