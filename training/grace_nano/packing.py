"""Mixing of sources and packing of whole examples into rows.

Unlike the usual stream of concatenated text, no example is cut and none sees another: positions start at 0 in
every example and attention stays within it, which is how the model is used later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_nano.store import Example, ExampleStore

__all__ = ["Batch", "BatchStream", "Mixture", "fill_row", "make_batch"]


@dataclass(frozen=True)
class Batch:
    """Rows of packed examples; every array has shape (rows, row_length).

    Attributes:
        ids: Token ids, int64; the pad id behind the last example.
        kinds: Kind of each token, uint8; 0 on padding.
        documents: Number of the example within its row, int32; -1 on padding.
        positions: Position within the example, int64.
    """

    ids: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    documents: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]


class Mixture:
    """Endless draw of examples so that every source gets its share of the tokens.

    Each source is shuffled once per pass; `positions` is the whole state and can be saved and restored.

    Args:
        stores: Examples by source.
        weights: Share of tokens by source; normalised here.
        seed: Seed of all shuffles.
    """

    def __init__(self, stores: dict[str, ExampleStore], weights: dict[str, float], seed: int) -> None:
        total = sum(weights.values())
        self.stores = stores
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.seed = seed
        self.positions = dict.fromkeys(weights, 0)
        self._spent = dict.fromkeys(weights, 0.0)
        self._orders: dict[str, tuple[int, npt.NDArray[np.int64]]] = {}

    def draw(self) -> Example:
        """Take the next example from the source that is furthest behind its share."""
        name = min(self._spent, key=lambda key: self._spent[key])
        store = self.stores[name]
        epoch, index = divmod(self.positions[name], len(store))
        if name not in self._orders or self._orders[name][0] != epoch:
            seed = [self.seed, epoch, *name.encode()]
            self._orders[name] = (epoch, np.random.default_rng(seed).permutation(len(store)))
        example = store[int(self._orders[name][1][index])]
        self.positions[name] += 1
        self._spent[name] += len(example) / self.weights[name]
        return example


def fill_row(pool: list[Example], row_length: int) -> list[Example]:
    """Take examples out of `pool` for one row: the oldest first, then always the longest that fits.

    Args:
        pool: Candidates, none longer than `row_length`; the chosen ones are removed.
        row_length: Room in tokens.

    Returns:
        The chosen examples.
    """
    chosen = [pool.pop(0)]
    room = row_length - len(chosen[0])
    while pool:
        fitting = [index for index, example in enumerate(pool) if len(example) <= room]
        if not fitting:
            break
        best = max(fitting, key=lambda index: len(pool[index]))
        chosen.append(pool.pop(best))
        room -= len(chosen[-1])
    return chosen


def make_batch(rows: list[list[Example]], row_length: int, pad_id: int) -> Batch:
    """Lay rows of examples out as arrays."""
    shape = (len(rows), row_length)
    batch = Batch(
        ids=np.full(shape, pad_id, dtype=np.int64),
        kinds=np.zeros(shape, dtype=np.uint8),
        documents=np.full(shape, -1, dtype=np.int32),
        positions=np.zeros(shape, dtype=np.int64),
    )
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples):
            end = start + len(example)
            batch.ids[row, start:end] = example.ids
            batch.kinds[row, start:end] = example.kinds
            batch.kinds[row, start] = 0  # nothing of this example precedes its first token
            batch.documents[row, start:end] = number
            batch.positions[row, start:end] = np.arange(len(example))
            start = end
    return batch


class BatchStream:
    """Batches of equal token count; examples too long for the short rows gather until they fill long rows.

    Args:
        mixture: Source of examples.
        row_lengths: Row lengths, rising; longer examples than the last are skipped.
        tokens_per_step: Tokens of a batch, padding included.
        pad_id: Id of padding.
        pool_size: Number of short examples from which rows are filled.
    """

    def __init__(
        self,
        mixture: Mixture,
        row_lengths: tuple[int, ...],
        tokens_per_step: int,
        pad_id: int,
        pool_size: int = 96,
    ) -> None:
        self.mixture = mixture
        self.row_lengths = row_lengths
        self.tokens_per_step = tokens_per_step
        self.pad_id = pad_id
        self.pool_size = pool_size
        self._pools: dict[int, list[Example]] = {length: [] for length in row_lengths}

    def next_batch(self) -> Batch:
        """Build the next batch."""
        shortest = self.row_lengths[0]
        while len(self._pools[shortest]) < self.pool_size:
            example = self.mixture.draw()
            for length in self.row_lengths:
                if len(example) <= length:
                    self._pools[length].append(example)
                    break
        for length in reversed(self.row_lengths[1:]):
            rows = self.tokens_per_step // length
            if len(self._pools[length]) >= rows:
                return make_batch([self._long_row(length) for _ in range(rows)], length, self.pad_id)
        rows = self.tokens_per_step // shortest
        packed = [fill_row(self._pools[shortest], shortest) for _ in range(rows)]
        return make_batch(packed, shortest, self.pad_id)

    def _long_row(self, length: int) -> list[Example]:
        first = self._pools[length].pop(0)
        room = length - len(first)
        rest = [example for example in self._pools[self.row_lengths[0]] if len(example) <= room]
        if not rest:
            return [first]
        filled = fill_row(rest, room)
        taken = {id(example) for example in filled}
        pool = self._pools[self.row_lengths[0]]
        self._pools[self.row_lengths[0]] = [example for example in pool if id(example) not in taken]
        return [first, *filled]
