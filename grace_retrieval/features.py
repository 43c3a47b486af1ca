"""Features: what `RationaleTransformer.preprocess` hands to `forward`, as tensors with one row a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grace_retrieval.prompt import RenderedText

__all__ = ["build_features", "pad_rows", "read_features"]

_TO_BE_WRITTEN = -1  # rationale_length of a text whose rationale is not given


def pad_rows(rows: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right.

    Args:
        rows: Token ids, one sequence a text.
        pad_token: Token to pad with.

    Returns:
        input_ids and attention_mask. Shape: (texts, tokens), int64.
    """
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask


def build_features(rendered: Sequence[RenderedText], pad_token: int, system_prompt: str) -> dict[str, Any]:
    """Make features of rendered texts.

    Args:
        rendered: Texts of one system prompt.
        pad_token: Token to pad with.
        system_prompt: The system prompt.

    Returns:
        input_ids and attention_mask of shape (texts, tokens), with given rationales behind their texts; text_length and
        rationale_length of shape (texts,), where a text_length of 0 marks a blank text and a rationale_length of -1 a
        rationale to be written; prompt_length, an int; system_prompt.
    """
    ids, mask = pad_rows([text.input_ids + (text.rationale_ids or ()) for text in rendered], pad_token)
    given = [text.rationale_ids for text in rendered]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "text_length": torch.tensor([text.text_length for text in rendered]),
        "rationale_length": torch.tensor([_TO_BE_WRITTEN if own is None else len(own) for own in given]),
        "prompt_length": rendered[0].prefix_length if rendered else 0,
        "system_prompt": system_prompt,
    }


def read_features(features: Mapping[str, Any]) -> list[RenderedText]:
    """Turn features back into rendered texts; whether they were shortened was said when they were made.

    Args:
        features: From `build_features`, possibly sliced by rows or moved to a device.
    """
    prefix_length = int(torch.as_tensor(features["prompt_length"]).flatten()[0])
    columns = (
        features["input_ids"].tolist(),
        features["attention_mask"].sum(1).tolist(),
        features["text_length"].tolist(),
        features["rationale_length"].tolist(),
    )
    rendered = []
    for ids, length, text_length, own in zip(*columns, strict=True):
        prompt = length - max(own, 0)
        rendered.append(
            RenderedText(
                input_ids=tuple(ids[:prompt]),
                prefix_length=prefix_length,
                text_length=text_length,
                truncated=False,
                rationale_ids=None if own == _TO_BE_WRITTEN else tuple(ids[prompt:length]),
            )
        )
    return rendered
