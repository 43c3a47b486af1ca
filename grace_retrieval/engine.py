"""The seam between this package and whatever runs a language model: token ids in, rationale and pooled vector out.

    Policy             a model that has loaded itself: tokenizer, sizes, identity of its weights, `run` and `states`
    TrainablePolicy    one whose weights are a torch module, so that they can be moved, trained and saved
    RationaleEngine    `run` alone, put before a policy that stays loaded: `embedder.writer.engine = ...`

None of them knows of texts, prompts or caches. The default is in `grace_retrieval.engines.transformers`;
where another goes, and how it is found by name, is in `grace_retrieval.engines.by_name`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError
from grace_retrieval.repetition import REPETITION
from grace_retrieval.sentences import SENTENCE_RULE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "FinishReason",
    "Policy",
    "RationaleEngine",
    "RationaleOutput",
    "RationaleRequest",
    "SamplingOptions",
    "TrainablePolicy",
]

FinishReason = Literal["stop", "length", "repeat", "given"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen. The default is greedy: the same text gives the same rationale.

    These are the only generation options there are; nothing is read from a model's own generation config.

    Args:
        temperature: 0 is greedy, otherwise the temperature of the softmax.
        top_p: Smallest set of tokens whose probabilities reach `top_p` (1 keeps all).
        top_k: Number of most probable tokens kept (0 keeps all).
        seed: Seed of the run; every text draws from its own stream, made from `seed` and its token ids, so a
            sampled rationale does not depend on the batch either.
        stop_repeats: Whether a rationale ends where it begins to go in circles, cut back to before that; see
            `grace_retrieval.repetition`. False here, as rollouts are wanted as the policy writes them; an embedder of a
            plain language model has it on.
        max_sentences: Most sentences of a rationale, which ends there as if the policy had ended it; 0 is as many as
            it writes. See `grace_retrieval.sentences`.

    Raises:
        InputError: If a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_repeats: bool = False
    max_sentences: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (isinstance(self.temperature, Real) and 0.0 <= self.temperature <= 10.0):
            raise InputError(f"temperature={self.temperature!r}: give 0 (greedy) or a number up to 10.")
        if not (isinstance(self.top_p, Real) and 0.0 < self.top_p <= 1.0):
            raise InputError(f"top_p={self.top_p!r}: give a number above 0 and up to 1 (1 keeps all tokens).")
        if not (isinstance(self.top_k, Integral) and self.top_k >= 0):
            raise InputError(f"top_k={self.top_k!r}: give 0 (keep all tokens) or a positive whole number.")
        if not (isinstance(self.seed, Integral) and self.seed >= 0):
            raise InputError(f"seed={self.seed!r}: give a whole number that is not negative.")
        if not isinstance(self.stop_repeats, bool):
            raise InputError(f"stop_repeats={self.stop_repeats!r}: give True or False.")
        if isinstance(self.max_sentences, bool) or not (
            isinstance(self.max_sentences, Integral) and self.max_sentences >= 0
        ):
            raise InputError(
                f"max_sentences={self.max_sentences!r}: give 0 (as many as are written) or a positive whole number."
            )
        object.__setattr__(self, "max_sentences", int(self.max_sentences))  # numpy's cannot be saved

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0

    def identity(self) -> dict[str, Any]:
        """The options that change a rationale, for the cache's fingerprint; when greedy, nothing of the sampling.

        Rationales that may go in circles, and of any number of sentences, are called as they were before they could
        be ended.
        """
        names = ["temperature"] if self.greedy else [field.name for field in fields(self)]
        chosen = {name: getattr(self, name) for name in names if name not in ("stop_repeats", "max_sentences")}
        if self.stop_repeats:
            chosen["stop_repeats"] = list(REPETITION)
        if self.max_sentences:
            chosen["max_sentences"] = [self.max_sentences, SENTENCE_RULE]
        return chosen


@dataclass(frozen=True, kw_only=True)
class RationaleRequest:
    """One text for an engine.

    Args:
        input_ids: The whole prompt: system prefix, text, turn tokens and assistant header. Shape: (tokens,).
        prefix_length: Number of leading tokens that are the system prefix; they are attended to, not pooled.
        max_new_tokens: Most tokens the rationale may have; 0 pools the prompt alone.
        rationale_ids: A given rationale, to be pooled instead of generating one.
        sample: Number of the sample: each draws its own random numbers, so that one text can have several rationales.
    """

    input_ids: tuple[int, ...]
    prefix_length: int
    max_new_tokens: int = 0
    rationale_ids: tuple[int, ...] | None = None
    sample: int = 0

    def __post_init__(self) -> None:
        """Check that there is something to pool."""
        if not 0 <= self.prefix_length < len(self.input_ids):
            raise InputError(
                f"prefix_length={self.prefix_length} of a prompt of {len(self.input_ids)} tokens: at least one token "
                "must follow the system prefix."
            )
        if self.max_new_tokens < 0:
            raise InputError(f"max_new_tokens={self.max_new_tokens}: give 0 or more.")
        if self.sample < 0:
            raise InputError(f"sample={self.sample}: give 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False)
class RationaleOutput:
    """What an engine gives back for one request.

    Args:
        token_ids: Rationale tokens, end-of-sequence token left out.
        finish_reason: "stop" (the policy ended, or its last sentence did), "length" (the budget did), "repeat" (it
            went in circles and was cut back to before that) or "given" (nothing was generated).
        vector: Mean of the last hidden states over every token behind the system prefix, not normalised.
            Shape: (hidden_size,), float32.
        end_token: The end-of-sequence token that was chosen, if the policy ended and the engine tells.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    vector: npt.NDArray[np.float32]
    end_token: int | None = None


@runtime_checkable
class RationaleEngine(Protocol):
    """Turns prompts into rationales and pooled vectors."""

    @property
    def family(self) -> str:
        """Name of the engine, part of the cache's fingerprint."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of the weights, part of the cache's fingerprint."""
        ...

    def run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
    ) -> Iterator[tuple[int, RationaleOutput]]:
        """Yield `(index of the request, output)` for every request, in the order in which they finish.

        Raises:
            EngineError: If generation fails for a reason other than memory that a smaller batch mends.
        """
        ...

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made: texts, prompt_tokens, new_tokens, forward_passes."""
        ...


@runtime_checkable
class Policy(RationaleEngine, Protocol):
    """A language model that has loaded itself, from its files to the text that it writes."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model, with its chat template."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt with its rationale."""
        ...

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state, and so of a vector."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a rationale."""
        ...

    def weights_id(self) -> str:
        """Content hash of the weights as they are now; the same for a copied or renamed model."""
        ...

    def states(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Run whole sequences, generating nothing.

        Args:
            sequences: Token ids of prompts with their rationales; none is empty.

        Yields:
            Place of a sequence, and its last hidden states. Shape: (tokens, hidden_size), float32. In any order.
        """
        ...

    def close(self) -> None:
        """Free what it holds: memory, processes. Whatever runs afterwards loads it again."""
        ...


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy whose weights are a torch module."""

    @property
    def module(self) -> PreTrainedModel:
        """The model with its language-model head."""
        ...

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states, differentiable. Shapes: (batch, tokens) each; result (batch, tokens, hidden_size)."""
        ...
