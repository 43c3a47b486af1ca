"""Batches of one source each: texts of one kind are harder to tell apart than a question from an abstract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from trl.trainer.utils import RepeatSampler

__all__ = ["SourceSampler"]


class SourceSampler(Sampler[int]):
    """Repeats rows as TRL's RepeatSampler does, with batches of one source each in random order.

    What is left of a source when its batches are filled is left out of the epoch.

    Args:
        sampler: TRL's, whose sizes and seed are taken.
        sources: Number of the source of each row.
    """

    def __init__(self, sampler: RepeatSampler, sources: Sequence[int]) -> None:
        self.sampler, self.sources = sampler, torch.tensor(list(sources))
        self.generator = torch.Generator()
        if sampler.seed is not None:
            self.generator.manual_seed(sampler.seed)

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers, each batch of rows `repeat_count` times, each row `mini_repeat_count` times in a row."""
        batches: list[list[int]] = []
        for source in self.sources.unique():
            rows = (self.sources == source).nonzero()[:, 0]
            if self.sampler.shuffle:
                rows = rows[torch.randperm(len(rows), generator=self.generator)]
            size = self.sampler.batch_size
            batches += [rows[start : start + size].tolist() for start in range(0, len(rows) - size + 1, size)]
        order = list(range(len(batches)))
        if self.sampler.shuffle:
            order = torch.randperm(len(batches), generator=self.generator).tolist()
        for number in order:
            for _ in range(self.sampler.repeat_count):
                for row in batches[number]:
                    yield from [row] * self.sampler.mini_repeat_count

    def __len__(self) -> int:
        """Row numbers of an epoch."""
        counts = self.sources.unique(return_counts=True)[1] // self.sampler.batch_size
        each = self.sampler.batch_size * self.sampler.mini_repeat_count * self.sampler.repeat_count
        return int(counts.sum()) * each
