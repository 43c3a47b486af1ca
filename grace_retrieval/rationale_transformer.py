"""RationaleTransformer: the sentence-transformers module around a RationalePipeline.

`preprocess` renders and tokenises, and never generates. `forward` finds or generates the rationales. For inference the
policy has pooled on the way, and the stock Pooling behind this module sees one vector a text; with gradients, or when
token states are asked for, it sees every token and leaves out the prefix by `prompt_length`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from grace_retrieval.cache import Fingerprint, RationaleCache
from grace_retrieval.engine import RationaleEngine, SamplingOptions, TrainablePolicy
from grace_retrieval.engines.by_name import PolicySource
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.errors import InputError
from grace_retrieval.features import build_features, pad_rows, read_features
from grace_retrieval.options import OnTruncation
from grace_retrieval.pipeline import RationalePipeline
from grace_retrieval.prompt import RationalePrompt, RenderedText
from grace_retrieval.rationale import RationaleMode
from grace_retrieval.stock import InputModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["ChosenModule", "RationaleTransformer"]

T = TypeVar("T")


class _Shared(Generic[T]):
    """An attribute of the pipeline, or of its options, under the same name."""

    def __init__(self, part: str = "") -> None:
        self._part = part

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def _owner(self, module: RationaleTransformer) -> object:
        return getattr(module.pipeline, self._part) if self._part else module.pipeline

    @overload
    def __get__(self, module: None, owner: type) -> Self: ...

    @overload
    def __get__(self, module: RationaleTransformer, owner: type) -> T: ...

    def __get__(self, module: RationaleTransformer | None, owner: type) -> Self | T:
        if module is None:
            return self
        value: T = getattr(self._owner(module), self._name)
        return value

    def __set__(self, module: RationaleTransformer, value: T) -> None:
        setattr(self._owner(module), self._name, value)


class RationaleTransformer(InputModule):
    """Input module of a GraceEmbedder: a policy, its tokenizer and how rationales are made, all in its `pipeline`.

    Args:
        model: A causal language model of transformers; None with `pipeline`.
        tokenizer: Its tokenizer.
        pipeline: A pipeline that is there already, instead of one around `model`.
        **options: Of RationalePipeline and WritingOptions: system_prompt, max_seq_length, max_new_tokens, temperature,
            top_p, top_k, seed, stop_repeats, max_sentences, rationale, on_truncation, cache, name.

    Attributes:
        pipeline: From texts to rationales and vectors.
        model: The policy's weights, for moving, training and saving; None if they are no torch module.

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
        "stop_repeats",
        "max_sentences",
        "rationale",
    ]
    forward_kwargs = {"rationale", "token_states", "task", "on_row"}  # noqa: RUF012 - the base class declares it so

    # The pipeline's, under the names by which they are documented here.
    engine = _Shared[RationaleEngine]()
    cache = _Shared[RationaleCache | None]()
    name = _Shared[str]()
    tokenizer = _Shared["PreTrainedTokenizerBase"]()
    rationale = _Shared[RationaleMode]("options")
    max_seq_length = _Shared[int]("options")
    max_new_tokens = _Shared[int]("options")
    sampling = _Shared[SamplingOptions]("options")
    on_truncation = _Shared[OnTruncation]("options")

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        pipeline: RationalePipeline | None = None,
        **options: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if pipeline is None:
            if model is None or tokenizer is None:
                raise InputError("A RationaleTransformer needs a model with its tokenizer, or a pipeline: give these.")
            source = PolicySource(path=options.pop("name", ""), loaded=(model, tokenizer))
            pipeline = RationalePipeline(source, **options)
        self.pipeline = pipeline
        policy = pipeline.policy
        self.model: PreTrainedModel | None = policy.module if isinstance(policy, TrainablePolicy) else None

    def configure(self, **options: Any) -> None:
        """Change options; None leaves one as it is. See WritingOptions for them.

        Raises:
            InputError: If an option is out of range.
        """
        self.pipeline.options.configure(**options)

    def get_config_dict(self) -> dict[str, Any]:
        """Options as saved in grace_config.json."""
        return self.pipeline.options.saved()

    def prompt(self, system_prompt: str | None) -> RationalePrompt:
        """The rendered form of a system prompt; None is the module's own.

        Raises:
            InputError: If it is no string, or leaves no room for a text.
        """
        return self.pipeline.prompt(system_prompt)

    def fingerprint(
        self, task: str | None = None, prompt: str | None = None, rationale: RationaleMode | None = None
    ) -> Fingerprint:
        """Identity of everything that may change a rationale or a vector; see `RationalePipeline.fingerprint`."""
        return self.pipeline.fingerprint(task, prompt, rationale)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a rationale; <think> tags stay, end tokens do not."""
        return self.pipeline.decode(token_ids)

    def get_embedding_dimension(self) -> int:
        """Number of dimensions of the hidden states."""
        return self.pipeline.policy.hidden_size

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
            of -1 a rationale to be generated; prompt_length, an int; system_prompt.

        Raises:
            InputError: If an input is not a str (or a pair), or too long and `on_truncation` is "error".
        """
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, None) for item in inputs]
        system_prompt = self.pipeline.options.system_prompt if prompt is None else prompt
        try:
            rendered = self.pipeline.render(
                [text for text, _ in pairs], prompt=system_prompt, given=[own for _, own in pairs]
            )
        except (TypeError, AttributeError) as error:
            # sentence-transformers would take these for an old module and embed something else.
            raise InputError(f"The texts cannot be tokenised: {type(error).__name__}: {error}") from error
        return build_features(rendered, self._pad_token, system_prompt)

    @property
    def _pad_token(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    # ------------------------------------------------------------------ features → vectors

    def forward(
        self,
        features: dict[str, Any],
        rationale: RationaleMode | None = None,
        token_states: bool = False,
        task: str | None = None,
        on_row: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add token_embeddings: one pooled vector a text, or all states with gradients or `token_states`.

        Args:
            features: From `preprocess`.
            rationale: Whether to use rationales; None is the module's setting.
            token_states: Whether to return the states of all tokens, prefix included.
            task: Role of the texts ("query", "document" or None), part of the cache's key.
            on_row: Called for each text as soon as its rationale and vector are there.
            **kwargs: Ignored.

        Returns:
            A copy of the features with token_embeddings of shape (batch, tokens, hidden), attention_mask of shape
            (batch, tokens) and prompt_length, the number of leading tokens that pooling leaves out.
        """
        rendered = read_features(features)
        options: dict[str, Any] = {
            "role": task,
            "prompt": features["system_prompt"],
            "rationale": self.rationale if rationale is None else rationale,
            "on_row": on_row,
        }
        if torch.is_grad_enabled() or token_states:
            return self._with_token_states({**features, "role": task}, rendered, options)
        rows = self.pipeline.write(rendered, **options)
        device = features["input_ids"].device
        vectors = torch.zeros(len(rows), self.get_embedding_dimension())
        for index, row in enumerate(rows):
            vectors[index] = torch.from_numpy(row.vector.copy())
        return {
            **features,
            "role": task,
            "token_embeddings": vectors[:, None].to(device),
            "attention_mask": torch.ones(len(rows), 1, dtype=torch.long, device=device),
            "prompt_length": 0,
        }

    def _with_token_states(
        self, features: dict[str, Any], rendered: Sequence[RenderedText], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run the policy over whole sequences, so that every token's state is there (and differentiable)."""
        device = features["input_ids"].device
        sequences = [text.input_ids + (text.rationale_ids or ()) for text in rendered]
        if options["rationale"] and any(text.rationale_ids is None for text in rendered):
            with torch.no_grad():
                rows = self.pipeline.write(rendered, **options)
            sequences = [text.input_ids + row.token_ids for text, row in zip(rendered, rows, strict=True)]
            ids, mask = pad_rows(sequences, self._pad_token)
            features["input_ids"], features["attention_mask"] = ids.to(device), mask.to(device)
        policy = self.pipeline.policy
        if isinstance(policy, TrainablePolicy):
            states = policy.hidden_states(features["input_ids"], features["attention_mask"])
        elif torch.is_grad_enabled():
            raise InputError(
                f"engine={policy.family!r} gives no gradients: its weights are no torch module. Train with "
                "engine='transformers', or embed under torch.no_grad()."
            )
        else:
            states = self._states(sequences, device)
        features["token_embeddings"] = states
        return features

    def _states(self, sequences: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """States of policies that are no torch module, padded. Shape: (texts, tokens, hidden)."""
        states = torch.zeros(len(sequences), max(map(len, sequences), default=0), self.get_embedding_dimension())
        for place, found in self.pipeline.policy.states(sequences):
            states[place, : len(found)] = torch.from_numpy(found)
        return states.to(device)

    # ------------------------------------------------------------------ save and load

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save policy, tokenizer and options. Never a pickle: weights go to safetensors.

        Raises:
            InputError: If the weights are no torch module.
        """
        if self.model is None:
            raise InputError(
                f"The weights that engine={self.pipeline.policy.family!r} runs cannot be saved from here. Open "
                f"{self.name!r} with engine='transformers' to save it, or copy its files."
            )
        self.model.save_pretrained(output_path)
        self.tokenizer.save_pretrained(output_path)
        policy = self.pipeline.policy
        if isinstance(policy, TransformersEngine) and (origin := policy.origin()) is not None:
            origin.write(output_path)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, chosen: Mapping[str, Any] | None = None, **kwargs: Any) -> Self:
        """Load a saved module, or make one from a plain causal LM.

        Args:
            model_name_or_path: Folder or hub name.
            *args: None; part of the base class's signature.
            chosen: Options of RationalePipeline and WritingOptions that come before the saved ones, and
                max_batch_tokens; None leaves an option as it is saved.
            **kwargs: What sentence-transformers passes: subfolder, token, cache_folder, revision, local_files_only,
                trust_remote_code, model_kwargs, processor_kwargs, config_kwargs, backend.

        Raises:
            ModelLoadError: If the folder is missing, damaged, of another kind, or asks for remote code.
            InputError: If an option is out of range, or there is no such engine.
        """
        hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        saved: dict[str, Any] = {}
        if not os.path.isfile(model_name_or_path):
            saved = cls.load_config(model_name_or_path, **{k: v for k, v in hub.items() if k != "trust_remote_code"})
        options = {key: value for key, value in saved.items() if key in cls.config_keys}
        if saved:
            options.setdefault("stop_repeats", False)  # see WritingOptions.saved
        options |= {key: value for key, value in (chosen or {}).items() if value is not None}
        budgets = [options.get("max_seq_length", 1024), options.get("max_new_tokens", 512)]
        source = PolicySource(
            path=str(model_name_or_path),
            hub=hub,
            kwargs={key: kwargs[key] for key in _TRANSFORMERS if kwargs.get(key) is not None},
            max_batch_tokens=options.pop("max_batch_tokens", None),
            max_length=sum(budget for budget in budgets if isinstance(budget, int)),
        )
        return cls(pipeline=RationalePipeline(source, **options))


_HUB = ("token", "cache_folder", "revision", "local_files_only", "subfolder", "trust_remote_code")
_TRANSFORMERS = ("model_kwargs", "processor_kwargs", "config_kwargs")
"""What is passed on to whatever downloads a policy, and to transformers alone."""


class ChosenModule:
    """Stands for RationaleTransformer while sentence-transformers loads a model, and adds what was asked for.

    Args:
        chosen: As in `RationaleTransformer.load`.
    """

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._chosen = chosen

    def load(self, model_name_or_path: str, **kwargs: Any) -> RationaleTransformer:
        """Load the module."""
        return RationaleTransformer.load(model_name_or_path, chosen=self._chosen, **kwargs)
