"""WritingOptions: how texts are shown to a policy, and how it writes about them."""

from __future__ import annotations

from dataclasses import asdict, replace
from numbers import Integral
from typing import Any, Literal

from grace_retrieval.engine import SamplingOptions
from grace_retrieval.errors import InputError
from grace_retrieval.prompt import DEFAULT_PROMPT
from grace_retrieval.rationale import RationaleMode, check_mode

__all__ = ["OnTruncation", "WritingOptions"]

OnTruncation = Literal["warn", "error", "ignore"]

LEAST_TEXT = 16
"""Positions that a rationale must leave to prompt and text."""


class WritingOptions:
    """Prompt, budgets and sampling, checked against the policy's context whenever they change.

    Args:
        context_length: Most tokens of a prompt with its rationale.
        system_prompt: Prompt of texts that come without one.
        max_seq_length: Most tokens of prompt and text; longer texts are shortened. None: 1024, or what the context
            leaves beside the rationale.
        max_new_tokens: Most tokens of a rationale. None: 512, or half of the context if that is less.
        temperature: See SamplingOptions; 0 is greedy.
        top_p: See SamplingOptions.
        top_k: See SamplingOptions.
        seed: See SamplingOptions.
        stop_repeats: See SamplingOptions; a rationale that goes in circles is ended, unless this is False.
        max_sentences: See SamplingOptions; 0 is as many as are written.
        rationale: Whether rationales are written, unless a call says otherwise; see RationaleMode.
        on_truncation: What to do about a text that is too long: "warn" and shorten, raise an "error", or "ignore".

    Attributes:
        sampling: How tokens are chosen, a SamplingOptions.

    Raises:
        InputError: If an option is out of range.
    """

    def __init__(
        self,
        context_length: int,
        *,
        system_prompt: str = DEFAULT_PROMPT,
        max_seq_length: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop_repeats: bool = True,
        max_sentences: int = 0,
        rationale: RationaleMode = True,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        self.context_length = context_length
        self.on_truncation = on_truncation
        self.max_new_tokens = min(512, context_length // 2)
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
            stop_repeats=stop_repeats,
            max_sentences=max_sentences,
            rationale=rationale,
        )

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
        stop_repeats: bool | None = None,
        max_sentences: int | None = None,
        rationale: RationaleMode | None = None,
    ) -> None:
        """Change options; None leaves one as it is. See the class for their meaning.

        Raises:
            InputError: If an option is out of range.
        """
        if rationale is not None:
            self.rationale = rationale
        if system_prompt is not None:
            self.system_prompt = system_prompt
        if max_new_tokens is not None:
            most = self.context_length - LEAST_TEXT
            if not (isinstance(max_new_tokens, Integral) and 0 <= max_new_tokens <= most):
                raise InputError(
                    f"max_new_tokens={max_new_tokens!r}: give 0 (no rationale) to {most}, so that a text fits beside "
                    f"the rationale into the model's {self.context_length} positions."
                )
            self.max_new_tokens = max_new_tokens
        room = self.context_length - self.max_new_tokens
        self.max_seq_length = min(self._max_seq_length or 1024, room) if max_seq_length is None else max_seq_length
        changes = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop_repeats": stop_repeats,
            "max_sentences": max_sentences,
        }
        self.sampling = replace(self.sampling, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a prompt with its text; the rationale comes on top."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        most = self.context_length - self.max_new_tokens
        if not (isinstance(value, Integral) and 1 <= value <= most):
            raise InputError(
                f"max_seq_length={value!r}: give a whole number from 1 to {most} (the model's {self.context_length} "
                f"positions less max_new_tokens={self.max_new_tokens})."
            )
        self._max_seq_length = value

    @property
    def rationale(self) -> RationaleMode:
        """Whether rationales are written, or the text is its own."""
        return self._rationale

    @rationale.setter
    def rationale(self, value: RationaleMode) -> None:
        self._rationale = check_mode(value)

    @property
    def on_truncation(self) -> OnTruncation:
        """What to do about a text that is too long: "warn" and shorten, raise an "error", or "ignore"."""
        return self._on_truncation

    @on_truncation.setter
    def on_truncation(self, value: OnTruncation) -> None:
        if value not in ("warn", "error", "ignore"):
            raise InputError(f"on_truncation={value!r}: give 'warn', 'error' or 'ignore'.")
        self._on_truncation = value

    def saved(self) -> dict[str, Any]:
        """Options as they are saved beside a model, in grace_config.json.

        `stop_repeats` and `max_sentences` are there only if they are on: models that were saved before they existed go
        on as they are.
        """
        sampling = asdict(self.sampling)
        later = {name: sampling.pop(name) for name in ("stop_repeats", "max_sentences")}
        return {
            "system_prompt": self.system_prompt,
            "max_seq_length": self.max_seq_length,
            "max_new_tokens": self.max_new_tokens,
            **sampling,
            **{name: value for name, value in later.items() if value},
            "rationale": self.rationale,
        }
