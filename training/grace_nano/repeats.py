"""Which tokens would repeat the rationale: the negative candidates of the unlikelihood term.

A model this small copies well before it writes well, and under greedy decoding it then copies itself in circles.
Unlikelihood (Welleck et al., 2020) is therefore applied where a circle begins, and nowhere else: to the token
that followed the last occurrences of the present token within the same rationale, and to the present token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grace_nano.store import RATIONALE

__all__ = ["repeat_candidates"]


def repeat_candidates(ids: Tensor, documents: Tensor, kinds: Tensor, targets: Tensor, window: int) -> Tensor:
    """Find, for every target, the tokens that would repeat a pair of tokens of its rationale.

    Args:
        ids: Token ids. Shape: (rows, length).
        documents: Number of the example of each token. Shape: (rows, length).
        kinds: Kind of each token. Shape: (rows, length).
        targets: Flat indices of the targets, all at least 1. Shape: (targets,).
        window: How many tokens to look back.

    Returns:
        Candidate ids; a place without a candidate holds the target's own id, which must be ignored.
        Shape: (targets, window).
    """
    rows = torch.arange(ids.shape[0])[:, None] * (int(documents.max()) + 2)
    flat_ids, flat_kinds = ids.flatten(), kinds.flatten()
    examples = (rows + documents).flatten()
    earlier = (targets[:, None] - torch.arange(1, window + 1)).clamp_(min=1)
    repeats = flat_ids[earlier - 1] == flat_ids[targets - 1][:, None]
    repeats[:, 0] = True
    repeats &= (flat_kinds[earlier] == RATIONALE) & (flat_kinds[targets] == RATIONALE)[:, None]
    repeats &= examples[earlier] == examples[targets][:, None]
    return torch.where(repeats, flat_ids[earlier], flat_ids[targets][:, None])
