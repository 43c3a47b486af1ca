"""Batches of texts alone, between those with rationales: InfoNCE on vectors that nothing has to be written for.

A rationale costs several times what its text costs, and most of what a policy learns about telling texts apart it
learns from the texts. So a trainer may leave rationales out of most batches (`rationale_every`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_training.packing import PackedBatch, packed_implementation, score_packed
from grace_training.pooling import captured_states, pool_states
from grace_training.rollouts import PolicyWriter, Role
from grace_training.scoring import info_nce, same_items, text_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["embed_texts", "text_loss", "unique_items"]

LM_SHARE = 0.25
"""Share of the tokens that are predicted: the head is a large part of a small policy, and a sample says as much."""


def unique_items(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row of each group of rollouts, in their order."""
    return list({(row["role"], row["prompt"], row["other"]): row for row in rows}.values())


def text_loss(
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    rows: Sequence[Mapping[str, Any]],
    *,
    temperature: float,
    packs: bool,
) -> tuple[Tensor, Tensor]:
    """InfoNCE on the texts of some rows, without rationales, and the policy's own loss on them.

    Args:
        model: The policy, perhaps wrapped for several processes.
        policy: The policy itself.
        writer: Renders texts.
        rows: Rows of the data set, each item once.
        temperature: τ.
        packs: Whether the policy runs flat sequences without padding.

    Returns:
        Two scalars: InfoNCE in both directions with negatives from these rows, and the mean negative log-likelihood of
        a sample of the texts' tokens.
    """
    places: dict[tuple[Role, str], int] = {}
    for row in rows:
        places.setdefault((row["role"], row["prompt"]), len(places))
        places.setdefault((row["other_role"], row["other"]), len(places))
        if row.get("negative") is not None:
            places.setdefault(("document", row["negative"]), len(places))
    vectors: list[Tensor] = [torch.empty(0)] * len(places)
    losses: list[Tensor] = []
    for role in ("document", "query"):
        texts = [text for of, text in places if of == role]
        if not texts:
            continue
        # Gradients of several processes are averaged by the wrapper, which one pass is enough to wake.
        found, loss = embed_texts(policy if losses else model, policy, writer, texts, role, packs=packs)
        losses.append(loss)
        for text, vector in zip(texts, found, strict=True):
            vectors[places[role, text]] = vector
    pooled = torch.stack(vectors)
    rollouts = pooled[[places[row["role"], row["prompt"]] for row in rows]]
    others = pooled[[places[row["other_role"], row["other"]] for row in rows]]
    negatives = None
    if all(row.get("negative") is not None for row in rows):
        negatives = pooled[[places["document", row["negative"]] for row in rows]]
    same_item = same_items(text_numbers(rows)).to(pooled.device)
    contrast = info_nce(rollouts[:, None], others, negatives, same_item=same_item, temperature=temperature)
    return contrast, torch.stack(losses).mean()


def embed_texts(
    model: nn.Module, policy: PreTrainedModel, writer: PolicyWriter, texts: Sequence[str], role: Role, *, packs: bool
) -> tuple[Tensor, Tensor]:
    """Pooled vectors of texts alone, with gradients, and the loss of predicting a sample of their tokens.

    Args:
        model: The policy, perhaps wrapped for several processes.
        policy: The policy itself.
        writer: Renders texts.
        texts: Texts.
        role: Whose prompt they get.
        packs: Whether the policy runs flat sequences without padding.

    Returns:
        Shape (texts, d), float32, and a scalar.
    """
    prompts, prefix, _ = writer.render(texts, role)
    chosen = [
        (row, place)
        for row, prompt in enumerate(prompts)
        for place in range(prefix, len(prompt))
        if torch.rand(()) < LM_SHARE
    ] or [(0, len(prompts[0]) - 1)]
    targets = torch.tensor([prompts[row][place] for row, place in chosen], device=policy.device)
    if packs:
        batch = PackedBatch(prompts, [()] * len(prompts), device=policy.device)
        batch.predict(chosen, targets)
        with packed_implementation(policy), captured_states(policy) as states:
            log_probs, _ = score_packed(model, policy, batch)
        weights = batch.pooling_weights([prefix] * len(prompts), [0] * len(prompts))
        return weights @ states[0][0].float(), -log_probs.mean()
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), 1
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    with captured_states(policy) as states:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows, places = (torch.tensor(list(column), device=policy.device) for column in zip(*chosen, strict=True))
    pooled = mask.bool()
    pooled[:, :prefix] = False
    predicted = logits[rows, places - 1].float()
    return pool_states(states[0], pooled), nn.functional.cross_entropy(predicted, targets)
