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
from grace_training.scoring import info_nce, pathwise_gradients, same_items, score_batch, text_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grace_training.config import GraceConfig

__all__ = ["Gradients", "as_documents", "embed_roles", "embed_texts", "places_of", "text_gradients", "text_loss"]

LM_SHARE = 0.25
"""Share of the tokens that are predicted: the head is a large part of a small policy, and a sample says as much."""

Text = tuple[Role, str]
Gradients = dict[Text, Tensor]
"""Gradient of the loss with respect to the vector of each text. Shape of each: (d,)."""


def as_documents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the document first: without rollouts a pair is the same either way, and more are told apart."""
    turned = {"prompt": "other", "role": "other_role", "other": "prompt", "other_role": "role"}
    return [
        dict(row) if row["role"] == "document" else {**row, **{new: row[old] for new, old in turned.items()}}
        for row in rows
    ]


def places_of(rows: Sequence[Mapping[str, Any]]) -> dict[Text, int]:
    """The texts of some rows, each once, with a number."""
    places: dict[Text, int] = {}
    for row in rows:
        for text in _texts(row):
            places.setdefault(text, len(places))
    return places


def text_loss(
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    rows: Sequence[Mapping[str, Any]],
    *,
    temperature: float,
    packs: bool,
) -> tuple[Tensor, Tensor]:
    """InfoNCE on the texts of a whole batch, without rationales, and the policy's own loss on them.

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
    places = places_of(rows)
    pooled, language = embed_roles(model, policy, writer, list(places), packs=packs)
    rollouts, others, negatives = _by_row(pooled, rows, places)
    same_item = same_items(text_numbers(rows)).to(pooled.device)
    contrast = info_nce(rollouts[:, None], others, negatives, same_item=same_item, temperature=temperature)
    return contrast, language


def text_gradients(
    policy: PreTrainedModel,
    writer: PolicyWriter,
    rows: Sequence[Mapping[str, Any]],
    config: GraceConfig,
    *,
    first: int,
    packs: bool,
) -> tuple[list[Gradients], Tensor]:
    """Differentiate InfoNCE of a batch of several processes or micro-batches by its vectors, once.

    Args:
        policy: The policy itself.
        writer: Renders texts.
        rows: This process's rows, one a rollout that is not written.
        config: Options.
        first: Number of the first of these rows among those of all processes.
        packs: Whether the policy runs flat sequences without padding.

    Returns:
        For each item that falls to this process, the gradients of its texts; and InfoNCE, a scalar.
    """
    places, n = places_of(rows), int(config.num_generations or 1)
    texts, size = list(places), config.per_device_train_batch_size
    with torch.no_grad():
        portions = [texts[start : start + size] for start in range(0, len(texts), size)]
        pooled = torch.cat([embed_roles(policy, policy, writer, part, packs=packs)[0] for part in portions])
    rollouts, others, negatives = _by_row(pooled, rows, places)
    batch = score_batch(rows, rollouts, [False] * len(rows), others, negatives, config, n)
    found = pathwise_gradients(batch, config)
    items: list[Gradients] = []
    for place, row in enumerate(rows):
        group, rollout = divmod(first + place, n)
        if rollout:
            continue
        gradients = [found.rollouts[group].sum(0), found.others[group]]
        if found.negatives is not None:
            gradients.append(found.negatives[group])
        item: Gradients = {}
        for text, gradient in zip(_texts(row), gradients, strict=False):  # some rows alone may have a negative
            item[text] = item[text] + gradient if text in item else gradient
        items.append(item)
    if not items:  # this process has to take part in the update all the same
        items.append({text: torch.zeros_like(pooled[0]) for text in _texts(rows[0])})
    return items, found.loss


def embed_roles(
    model: nn.Module, policy: PreTrainedModel, writer: PolicyWriter, texts: Sequence[Text], *, packs: bool
) -> tuple[Tensor, Tensor]:
    """`embed_texts` of documents and queries together. Shapes: (texts, d), and a scalar."""
    vectors: list[Tensor] = [torch.empty(0)] * len(texts)
    losses: list[Tensor] = []
    for role in ("document", "query"):
        places = [place for place, (of, _) in enumerate(texts) if of == role]
        if not places:
            continue
        # Gradients of several processes are averaged by the wrapper, which one pass is enough to wake.
        found, loss = embed_texts(
            policy if losses else model, policy, writer, [texts[place][1] for place in places], role, packs=packs
        )
        losses.append(loss)
        for place, vector in zip(places, found, strict=True):
            vectors[place] = vector
    return torch.stack(vectors), torch.stack(losses).mean()


def _texts(row: Mapping[str, Any]) -> list[Text]:
    negative = row.get("negative")
    others = [] if negative is None else [("document", negative)]
    return [(row["role"], row["prompt"]), (row["other_role"], row["other"]), *others]


def _by_row(
    pooled: Tensor, rows: Sequence[Mapping[str, Any]], places: Mapping[Text, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors of each row's text, of the other text and of the negative, if all have one. Shape of each: (rows, d)."""
    columns = list(zip(*([places[text] for text in _texts(row)[:2]] for row in rows), strict=True))
    rollouts, others = (pooled[list(column)] for column in columns)
    if any(row.get("negative") is None for row in rows):
        return rollouts, others, None
    return rollouts, others, pooled[[places["document", row["negative"]] for row in rows]]


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
