"""Rationales that go in circles: when a policy is taken to repeat itself, and where its rationale is cut.

The rule, over token ids alone: a rationale is ended as soon as its last tokens are the same 4 to 64 tokens three times
in a row. It is cut back to where the repetition begins, so what was repeated stays once:

    The flow of the gas is modeled. The gas is a gas. The gas is a gas. The gas is a gas.
    └──────────── kept ──────────────────────────────┘

Three times four tokens is the least: lists, numbers and "very, very" are not taken for a circle. Shorter ones are found
as well, once they have gone on for that long ("a a a a" is four tokens too). The rule is that of vLLM's
`repetition_detection`, so that all engines end the same rationales.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["REPETITION", "RepetitionWatch", "repetition_start"]

SHORTEST, LONGEST, TIMES = 4, 64, 3

REPETITION = (SHORTEST, LONGEST, TIMES)
"""Fewest and most tokens of what is repeated, and how often it comes; part of the identity of rationales."""


class RepetitionWatch:
    """Watches a rationale as it is written, for about as much work a token as the token came before in the last 64.

    Example:
        >>> watch = RepetitionWatch()
        >>> [watch.add(token) for token in (9, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4)][-2:]
        [None, 5]
    """

    def __init__(self) -> None:
        self._length = 0
        self._places: dict[int, list[int]] = {}
        # By distance: how many of the last tokens are the same as the tokens so far before them.
        self._runs: dict[int, int] = {}

    def add(self, token: int) -> int | None:
        """Take the next token.

        Args:
            token: Its id.

        Returns:
            How many tokens to keep, if the rationale now goes in circles; None if it does not.
        """
        places = self._places.setdefault(token, [])
        runs: dict[int, int] = {}
        for place in reversed(places):
            distance = self._length - place
            if distance > LONGEST:
                break
            runs[distance] = self._runs.get(distance, 0) + 1
        places.append(self._length)
        self._length += 1
        self._runs = runs
        for distance in sorted(runs):
            if distance >= SHORTEST and runs[distance] >= (TIMES - 1) * distance:
                # Four times "a" is one "a" four times: the shortest circle that goes as far back leaves the least.
                return self._length - max(run for shorter, run in runs.items() if shorter <= distance)
        return None


def repetition_start(tokens: Iterable[int]) -> int | None:
    """Where a rationale that was written without a watch is to be cut.

    Args:
        tokens: Its token ids.

    Returns:
        How many of its first tokens to keep; None if it does not go in circles.

    Example:
        >>> repetition_start([7] * 20), repetition_start(range(20))
        (1, None)
    """
    watch = RepetitionWatch()
    return next((start for start in map(watch.add, tokens) if start is not None), None)
