"""A teacher: another embedding model, whose similarities within a batch are soft targets beside InfoNCE.

A pair says which text belongs to which, and nothing of how near the others are: InfoNCE pushes all of them away alike,
also those that would answer the query as well. A model that was trained on more knows better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize

if TYPE_CHECKING:
    from grace_training.rollouts import GivenText

__all__ = ["Teacher", "load_teacher", "soft_target_loss"]


class Teacher:
    """Gives the vectors of another model.

    Args:
        model: A SentenceTransformer. It is run without gradients and is not changed.
        batch_size: Texts of a pass.
    """

    def __init__(self, model: Any, batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[GivenText]) -> Tensor:
        """Vectors of texts, without their rationales. Shape: (texts, its dimension), float32, each of norm 1."""
        found = torch.empty(0)
        for role, encode in (("document", self.model.encode_document), ("query", self.model.encode_query)):
            places = [place for place, text in enumerate(texts) if text.role == role]
            if places:
                vectors = encode(
                    [texts[place].text for place in places],
                    batch_size=self.batch_size,
                    convert_to_tensor=True,
                    show_progress_bar=False,
                ).float()
                found = found if len(found) else torch.empty(len(texts), vectors.shape[1], device=vectors.device)
                found[places] = normalize(vectors, dim=-1)
        return found.clone()


def load_teacher(name: str, device: str | None = None) -> Teacher:
    """Open a teacher.

    Args:
        name: A name of `grace fetch --list`, a folder or a name on the hub, of any sentence-transformers model.
        device: Where it runs; None lets sentence-transformers choose.

    Raises:
        ModelLoadError: If it cannot be opened.
    """
    from sentence_transformers import SentenceTransformer

    from grace_retrieval.errors import ModelLoadError
    from grace_retrieval.fetching import fetch, is_fetched_name

    place = str(fetch(name)) if is_fetched_name(name) else name
    try:
        return Teacher(SentenceTransformer(place, device=device))
    except Exception as error:  # whatever the libraries raise
        raise ModelLoadError(f"The teacher {name!r} cannot be opened: {str(error).splitlines()[0]}") from error


def soft_target_loss(rollouts: Tensor, others: Tensor, scores: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from a teacher's distribution over the batch, in both directions.

    With softmaxes over the others of a rollout, and over the rollouts of an other, of similarities divided by τ.

    Args:
        rollouts: Pooled vectors. Shape: (B, n, d).
        others: Shape: (B, d).
        scores: The teacher's cosines of the B texts and the B others. Shape: (B, B).
        temperature: τ, of both models.

    Returns:
        A scalar: the mean over groups, rollouts and directions.
    """
    near = torch.einsum("bnd,cd->nbc", normalize(rollouts, dim=-1), normalize(others, dim=-1)) / temperature
    target = (scores.to(near) / temperature).expand_as(near)
    losses = [
        kl_div(log_softmax(a, -1), log_softmax(b, -1), reduction="none", log_target=True).sum(-1).mean()
        for a, b in ((near, target), (near.transpose(1, 2), target.transpose(1, 2)))
    ]
    return torch.stack(losses).mean()
