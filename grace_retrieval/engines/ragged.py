"""Attention over rows of different lengths without padding the rest of the network.

The decode loop feeds the model one flat sequence of tokens, `(1, tokens)`, that belong to many rows: a row may get one
token (plain decoding), a few (drafted tokens to verify) or its whole prompt. Everything but attention treats tokens
alone, so only attention has to know the rows. `RaggedCache.update` writes each token's key and value to its row and
position, and `ragged_attention`, registered as an attention implementation of transformers, regroups the
queries by row. A token's slot in the cache is its position: no row has holes, and the mask is "slot ≤ position".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = [
    "RaggedBatch",
    "RaggedCache",
    "UnsupportedAttentionError",
    "attention_implementation",
    "ragged_forward",
    "ragged_implementation",
    "refuse_unsupported",
]

IMPLEMENTATION = "grace_ragged"
_current_batch: ContextVar[RaggedBatch] = ContextVar("grace_ragged_batch")


class UnsupportedAttentionError(Exception):
    """The model's attention needs something that `ragged_attention` does not do."""


class RaggedBatch:
    """Where the tokens of one forward pass belong.

    Args:
        counts: Number of tokens of each row; 0 leaves a row out. Rows are `first_row, first_row + 1, …` of the cache.
        starts: Position of each row's first token.
        first_row: First row of the cache that takes part.
        device: Device of the model.
        dtype: dtype of the model, for the additive mask.
    """

    def __init__(
        self,
        counts: Sequence[int],
        starts: Sequence[int],
        *,
        first_row: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        count = torch.tensor(counts)
        start = torch.tensor(starts)
        width = int(count.max())
        offset = count.cumsum(0) - count
        step = torch.arange(width)
        valid = step < count[:, None]  # (rows, width)
        position = (start[:, None] + step).masked_fill(~valid, 0)
        self.first_row = first_row
        self.last_row = first_row + len(counts)
        self.key_length = int((start + count).max())
        self.device, self.dtype = device, dtype
        # One token a row is the common step: then rows and flat tokens are the same and need no gathering.
        self.dense = width == 1 and bool(valid.all())
        self.width = width
        self.gather = (offset[:, None] + step).masked_fill(~valid, 0).flatten().to(device)  # padded place -> flat token
        self.places = valid.flatten().nonzero()[:, 0].to(device)  # flat token -> padded place
        self.position = position.to(device)
        row = torch.arange(len(counts))[:, None].expand(-1, width)
        self.token_row = row[valid].to(device)  # (tokens,), relative to first_row
        self.token_position = position[valid].to(device)
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def mask(self, groups: int, window: int | None) -> Tensor:
        """Additive mask for queries folded by `groups`. Shape: (rows, 1, groups · width, key_length)."""
        if (groups, window) not in self._masks:
            slot = torch.arange(self.key_length, device=self.device)
            seen = slot <= self.position[..., None]
            if window is not None:
                seen &= slot > self.position[..., None] - window
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            mask.masked_fill_(~seen, float("-inf"))
            self._masks[groups, window] = mask.repeat(1, groups, 1)[:, None]
        return self._masks[groups, window]


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer. Shape: (rows, key_value_heads, capacity, head_dim)."""

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, prefix: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.prefix = prefix

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate nothing yet: `reserve` knows the length."""
        self.keys = key_states.new_empty(self.rows, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_empty(self.rows, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True
        if self.prefix is not None:
            length = self.prefix[0].shape[1]
            self.reserve(length)
            self.keys[:, :, :length] = self.prefix[0]
            self.values[:, :, :length] = self.prefix[1]

    def reserve(self, length: int) -> None:
        """Make room for `length` slots a row, in large steps."""
        capacity = self.keys.shape[2]
        if length <= capacity:
            return
        capacity = max(length + 32, capacity + capacity // 4)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            # Zeros, not garbage: a masked slot still meets a weight of 0, and 0 · NaN is NaN.
            new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens and return the rows that take part, up to the longest of them."""
        batch = _current_batch.get()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.reserve(batch.key_length)
        rows = slice(batch.first_row, batch.last_row)
        keys, values = self.keys[rows], self.values[rows]
        keys[batch.token_row, :, batch.token_position] = key_states[0].transpose(0, 1)
        values[batch.token_row, :, batch.token_position] = value_states[0].transpose(0, 1)
        return keys[:, :, : batch.key_length], values[:, :, : batch.key_length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not used: `ragged_attention` makes its own mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Not used: positions are given explicitly."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RaggedCache(Cache):
    """Key-value cache of a batch of rows that start with the same prefix.

    Args:
        layers: Number of layers.
        rows: Number of rows.
        prefix: Keys and values of the shared prefix, one pair a layer, each of shape
            (key_value_heads, prefix_length, head_dim).
    """

    def __init__(self, layers: int, rows: int, prefix: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        self.ragged_layers = [RaggedLayer(rows, prefix[i] if prefix else None) for i in range(layers)]
        super().__init__(layers=list(self.ragged_layers))

    def row(self, index: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Copy the first `length` slots of one row, to serve as the prefix of other batches."""
        return [(x.keys[index, :, :length].clone(), x.values[index, :, :length].clone()) for x in self.ragged_layers]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one that is named twice is copied, one that is not named is dropped."""
        for layer in self.ragged_layers:
            if layer.is_initialized:
                index = torch.tensor(rows, device=layer.keys.device)
                layer.keys, layer.values = layer.keys[index], layer.values[index]
            layer.rows = len(rows)


def refuse_unsupported(options: Mapping[str, Any]) -> None:
    """Refuse options of attention that would change the result.

    Args:
        options: What the model passes to its attention besides queries, keys and values.

    Raises:
        UnsupportedAttentionError: If the model asks for soft-capping, sinks or a position bias.
    """
    for option in ("softcap", "s_aux", "position_bias"):
        if options.get(option) is not None:
            raise UnsupportedAttentionError(option)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of flat queries over the rows of a `RaggedCache`.

    Query heads that share a key-value head are folded into the query axis, so keys and values are never repeated.

    Args:
        module: The attention layer (part of transformers' attention interface, unused).
        query: Shape: (1, heads, tokens, head_dim).
        key: Shape: (rows, key_value_heads, key_length, head_dim).
        value: As `key`.
        attention_mask: Unused; the batch knows what a token may see.
        scaling: Factor of the scores; 1/√head_dim if None.
        sliding_window: Number of latest positions that a token sees, if limited.
        **kwargs: Options of other implementations; those that would change the result are refused.

    Returns:
        Output of shape (1, tokens, heads, head_dim), and None for the weights.

    Raises:
        UnsupportedAttentionError: If the model asks for soft-capping, sinks or a position bias.
    """
    refuse_unsupported(kwargs)
    batch = _current_batch.get()
    rows, shared_heads, _, _ = key.shape
    heads, dim = query.shape[1], query.shape[3]
    groups, width = heads // shared_heads, batch.width
    by_row = query[0].transpose(0, 1)  # (tokens, heads, head_dim)
    if not batch.dense:
        by_row = by_row.index_select(0, batch.gather)
    folded = by_row.view(rows, width, shared_heads, groups, dim).permute(0, 2, 3, 1, 4)
    output = nn.functional.scaled_dot_product_attention(
        folded.reshape(rows, shared_heads, groups * width, dim),
        key,
        value,
        attn_mask=batch.mask(groups, sliding_window),
        scale=scaling,
    )
    output = output.view(rows, shared_heads, groups, width, -1).permute(0, 3, 1, 2, 4).reshape(rows * width, heads, -1)
    # By number: a mask would have to be counted, and a GPU would wait for that in every layer.
    return (output if batch.dense else output.index_select(0, batch.places))[None], None


AttentionInterface.register(IMPLEMENTATION, ragged_attention)


def ragged_implementation(model: nn.Module) -> AbstractContextManager[None]:
    """Let `model` attend through `ragged_attention` inside the block; the caller holds the model's lock."""
    return attention_implementation(model, IMPLEMENTATION)


@contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Let `model` attend through an implementation that transformers knows by name, inside the block."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def ragged_forward(model: nn.Module, input_ids: Tensor, batch: RaggedBatch, cache: RaggedCache) -> Any:
    """Run `model` over the flat tokens of a batch (inside `ragged_implementation`).

    Args:
        model: A causal LM or its base model.
        input_ids: Shape: (tokens,), row after row.
        batch: Where the tokens belong.
        cache: Cache of the rows; gets the new keys and values.

    Returns:
        The model's own output object; its tensors have shape (1, tokens, …).
    """
    token = _current_batch.set(batch)
    try:
        return model(
            input_ids=input_ids[None],
            position_ids=batch.token_position[None],
            past_key_values=cache,
            use_cache=True,
        )
    finally:
        _current_batch.reset(token)
