"""The decode loop: one pass that writes rationales and sums the hidden states it sees on the way.

A row is one text. Every forward pass feeds each live row its last token and, where there is one, a draft of what may
follow; the states of the tokens that turn out right are added to the row's sum, so nothing is run twice. A row that is
watched for repetition keeps the states of what it writes until it has ended: one that goes in circles is cut back, and
its sum is then made of the states before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grace_retrieval.engine import FinishReason, RationaleOutput, RationaleRequest
from grace_retrieval.engines.drafting import Drafter
from grace_retrieval.engines.ragged import RaggedBatch, RaggedCache
from grace_retrieval.repetition import RepetitionWatch
from grace_retrieval.sentences import SentenceWatch

__all__ = ["Forward", "Row", "Step", "decode", "prefill"]

Forward = Callable[[Tensor, RaggedBatch, RaggedCache], Tensor]
"""Tokens (tokens,) → last hidden states (tokens, hidden)."""

Step = Callable[[Tensor, RaggedBatch, RaggedCache, "npt.NDArray[np.float64] | None"], "tuple[Tensor, list[int]]"]
"""Tokens (tokens,) and a random number for each, if sampling → last hidden states and the token chosen after each."""


class Row:
    """One text on its way through the loop.

    Args:
        index: Place of the request in the caller's list.
        request: The text.
        uniforms: Random numbers for sampling, one a rationale token; None when greedy.
        draft: Whether to draft from the text's own words.
        watched: Whether the rationale ends where it goes in circles.
        sentences: Counts its sentences, if there are not to be more than so many.
    """

    def __init__(
        self,
        index: int,
        request: RationaleRequest,
        *,
        uniforms: npt.NDArray[np.float64] | None,
        draft: bool,
        watched: bool = False,
        sentences: SentenceWatch | None = None,
    ) -> None:
        self.index = index
        self.request = request
        self.uniforms = uniforms
        self.generates = request.rationale_ids is None and request.max_new_tokens > 0
        body = request.input_ids[request.prefix_length :]
        # The last prompt token is fed by the decode loop, whose output picks the first token of the rationale.
        self.prompt = body[:-1] if self.generates else body + (request.rationale_ids or ())
        self.position = request.prefix_length  # of the next token to feed
        self.pending: int | None = body[-1] if self.generates else None
        self.drafted: list[int] = []
        self.written: list[int] = []
        self.pooled_tokens = 0
        self.finish_reason: FinishReason | None = None if self.generates else "given"
        self.end_token: int | None = None
        self.drafter = Drafter(body) if draft and self.generates else None
        self.watch = RepetitionWatch() if watched and self.generates else None
        self.sentences = sentences
        self._read: tuple[Tensor, int] | None = None  # sum and number of the states behind which `_states` come
        self._states: list[Tensor] = []

    def start_like(self, row: Row) -> None:
        """Go on behind the prompt that another row with the same prompt has been fed."""
        self.position, self.pooled_tokens = row.position, row.pooled_tokens

    @property
    def done(self) -> bool:
        """Whether the rationale has ended and all its tokens have been fed."""
        return self.finish_reason is not None and self.pending is None

    def feed(self, most_drafted: int) -> list[int]:
        """Tokens of this row for the next forward pass."""
        self.drafted = []
        if self.pending is None:
            return []
        if self.drafter is not None and self.finish_reason is None:
            room = self.request.max_new_tokens - len(self.written)
            self.drafted = self.drafter.draft(min(most_drafted, room))
        return [self.pending, *self.drafted]

    def accept(self, chosen: Sequence[int], end_tokens: frozenset[int]) -> int:
        """Take the policy's choice behind each fed token.

        Args:
            chosen: The next token behind the pending one and behind each drafted one.
            end_tokens: Tokens that end a rationale.

        Returns:
            How many of the fed tokens belong to the text or the rationale: their states are pooled.
        """
        if self.finish_reason is not None:  # the budget was used up, the last token only had to be fed
            self.pending = None
            self.position += 1
            return 1
        right = 0
        while right < len(self.drafted) and self.drafted[right] == chosen[right]:
            right += 1
        if self.drafter is not None and self.drafted:
            self.drafter.feedback(len(self.drafted), right)
        new: list[int] = []
        for token in chosen[: right + 1]:
            if token in end_tokens:
                self.finish_reason, self.end_token = "stop", token
                break
            if self.sentences is not None and self.sentences.ends(token):
                self.finish_reason = "stop"
                break
            new.append(token)
            start = None if self.watch is None else self.watch.add(token)
            if start is not None:
                self.finish_reason, self.pending = "repeat", None
                self.written = (self.written + new)[:start]
                return 1 + min(len(new), right)
            if len(self.written) + len(new) == self.request.max_new_tokens:
                self.finish_reason = "length"
                break
        fed = 1 + min(len(new), right)
        # New tokens that came true as drafts have been fed; one behind them has not and waits for the next pass.
        self.pending = new[-1] if len(new) == fed else None
        self.written += new
        self.position += fed
        if self.drafter is not None:
            self.drafter.extend(new)
        return fed

    def keep(self, states: Tensor) -> None:
        """Keep the states of fed tokens that are pooled, in case some have to go. Shape: (tokens, hidden)."""
        if self.watch is not None:
            self._states.append(states)

    def begin(self, total: Tensor) -> None:
        """Note the sum of the states that stay whatever is written. Shape: (hidden,), float32."""
        if self.watch is not None:
            self._read = total, self.pooled_tokens

    def end(self, total: Tensor) -> Tensor:
        """The sum of the finished row: `total`, or where it was cut back the states that are left, one by one."""
        states, self._states = self._states, []
        if self.finish_reason != "repeat" or self._read is None:
            return total
        read, tokens = self._read
        # The last prompt token is the first that was fed.
        left = torch.cat(states)[: 1 + len(self.written)].float()
        self.pooled_tokens = tokens + len(left)
        return read[None].index_add(0, torch.zeros(len(left), dtype=torch.long, device=left.device), left)[0]

    def output(self, total: Tensor) -> RationaleOutput:
        """Pool the finished row. `total`: sum of its states, shape (hidden,), float32."""
        return RationaleOutput(
            token_ids=tuple(self.written) if self.generates else self.request.rationale_ids or (),
            finish_reason=self.finish_reason or "given",
            vector=(total / self.pooled_tokens).cpu().numpy(),
            end_token=self.end_token,
        )


def prefill(
    rows: Sequence[Row],
    cache: RaggedCache,
    totals: Tensor,
    forward: Forward,
    *,
    dtype: torch.dtype,
    most_tokens: int,
) -> None:
    """Feed the prompts, whole rows at a time, about `most_tokens` tokens a forward pass.

    Args:
        rows: Rows in the order of the cache.
        cache: Gets their keys and values.
        totals: Gets the sums of their hidden states. Shape: (rows, hidden), float32.
        forward: Runs the base model.
        dtype: dtype of the model.
        most_tokens: Aim for the tokens of one forward pass; a longer row is fed alone.
    """
    first = 0
    while first < len(rows):
        last = first + 1
        while last < len(rows) and sum(len(row.prompt) for row in rows[first : last + 1]) <= most_tokens:
            last += 1
        chunk = rows[first:last]
        counts = [len(row.prompt) for row in chunk]
        if any(counts):
            starts = [row.position for row in chunk]
            batch = RaggedBatch(counts, starts, first_row=first, device=totals.device, dtype=dtype)
            tokens = torch.tensor([token for row in chunk for token in row.prompt], device=totals.device)
            hidden = forward(tokens, batch, cache)
            totals.index_add_(0, first + batch.token_row, hidden.float())
        for row in chunk:
            row.position += len(row.prompt)
            row.pooled_tokens += len(row.prompt)
        first = last


def decode(
    rows: Sequence[Row],
    cache: RaggedCache,
    totals: Tensor,
    step: Step,
    *,
    dtype: torch.dtype,
    end_tokens: frozenset[int],
    most_tokens: int,
) -> Iterator[tuple[Row, Tensor]]:
    """Write the rationales of prefilled rows; yield each row and its sum of states when it is finished.

    Args:
        rows: Rows in the order of the cache. A finished one is not fed again, and leaves the cache soon after.
        cache: Their keys and values.
        totals: Sums of pooled states. Shape: (rows, hidden), float32.
        step: Runs the model and chooses tokens.
        dtype: dtype of the model.
        end_tokens: Tokens that end a rationale.
        most_tokens: Most tokens of a forward pass with drafts. Drafting pays while a pass costs the same for a few
            tokens more, so large batches do without.
    """
    rows = list(rows)
    for row, read in zip(rows, totals.clone(), strict=True):
        row.begin(read)
    while live := [slot for slot, row in enumerate(rows) if not row.done]:
        if len(live) <= 0.8 * len(rows):  # copying the cache has a price, so not for every row that finishes
            cache.keep(live)
            totals = totals[torch.tensor(live, device=totals.device)]
            rows = [rows[slot] for slot in live]
        fed = [row.feed(max(0, most_tokens // len(live) - 1)) for row in rows]
        batch = RaggedBatch(
            [len(tokens) for tokens in fed],
            [row.position for row in rows],
            first_row=0,
            device=totals.device,
            dtype=dtype,
        )
        flat = torch.tensor([token for tokens in fed for token in tokens], device=totals.device)
        hidden, chosen = step(flat, batch, cache, uniforms_of(rows, fed))
        pooled, offset = torch.zeros(len(flat), dtype=torch.bool), 0
        finished = []
        for slot, (row, tokens) in enumerate(zip(rows, fed, strict=True)):
            if not tokens:
                continue
            count = row.accept(chosen[offset : offset + len(tokens)], end_tokens)
            row.pooled_tokens += count
            row.keep(hidden[offset : offset + count])
            pooled[offset : offset + count] = True
            offset += len(tokens)
            if row.done:
                finished.append(slot)
        keep = pooled.to(totals.device)
        totals.index_add_(0, batch.token_row[keep], hidden[keep].float())
        for slot in finished:
            yield rows[slot], rows[slot].end(totals[slot])


def uniforms_of(rows: Sequence[Row], fed: Sequence[Sequence[int]]) -> npt.NDArray[np.float64] | None:
    """Random numbers for the tokens that follow each fed token. Shape: (tokens,); None when greedy."""
    if rows[0].uniforms is None:
        return None
    numbers = [
        row.uniforms[np.minimum(len(row.written) + np.arange(len(tokens)), len(row.uniforms) - 1)]
        for row, tokens in zip(rows, fed, strict=True)
        if row.uniforms is not None
    ]
    return np.concatenate(numbers)
