"""Prompt-lookup drafting: rationales repeat the text's words, so propose what followed them there.

A draft costs a few more tokens in a forward pass that runs anyway, and is kept only as far as the policy would have
written the same, so it never changes a rationale. Method: prompt-lookup decoding (Saxena 2023), over the text and
the rationale so far.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Drafter"]


class Drafter:
    """Drafts of one row.

    Args:
        tokens: Tokens of the text, in order.
        longest: Most tokens drafted at once.
    """

    ngram = 3

    def __init__(self, tokens: Iterable[int], *, longest: int = 12) -> None:
        self.longest = longest
        self.hit_rate = 0.5
        self._length = 4
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self._found = -1
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens of the rationale; a draft is looked up behind the last of them."""
        history, following = self._tokens, self._next
        self._found = -1
        for token in tokens:
            history.append(token)
            end = len(history)
            self._found = -1
            # The longest context that occurred before wins; the latest occurrence of each is remembered.
            for n in range(min(self.ngram, end), 1, -1):
                context = tuple(history[end - n :])
                if self._found < 0:
                    self._found = following.get(context, -1)
                following[context] = end

    def draft(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next, or none."""
        if self._found < 0:
            return []
        return self._tokens[self._found : self._found + min(most, self._length)]

    def feedback(self, drafted: int, accepted: int) -> None:
        """Adapt the length of drafts to how many were right."""
        self.hit_rate += 0.2 * (accepted / drafted - self.hit_rate)
        if accepted == drafted:
            self._length = min(2 * self._length, self.longest)
        else:
            self._length = max(2, accepted + 1)
