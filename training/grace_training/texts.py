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
from grace_training.pooling import captured_states, pad_right, pool_states
from grace_training.rollouts import PolicyWriter, Role
from grace_training.scoring import gather_batch, info_nce, pathwise_gradients, same_items, text_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grace_training.config import GraceConfig

__all__ = ["TextBatch", "embed_roles", "embed_texts"]

LM_SHARE = 0.25
"""Share of the tokens that are predicted: the head is a large part of a small policy, and a sample says as much."""

Text = tuple[Role, str]


class TextBatch:
    """A generation batch for which nothing is written.

    Its negatives come from all micro-batches and processes. Where there are several, InfoNCE is differentiated by the
    vectors first, as that of rollouts is, which costs a forward pass more.

    Args:
        rows: This process's rows, one a rollout that is not written.
        policy: The policy, not wrapped for several processes.
        writer: Renders texts.
        config: Options.
        packs: Whether the policy runs flat sequences without padding.
        process: Number of this process.
        processes: How many there are.
        micro_batches: How many the batch is learned from in.

    Attributes:
        contrastive_loss: InfoNCE of the batch; nan until it is known.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        policy: PreTrainedModel,
        writer: PolicyWriter,
        config: GraceConfig,
        *,
        packs: bool,
        process: int = 0,
        processes: int = 1,
        micro_batches: int = 1,
    ) -> None:
        self._rows = [_as_document(row) for row in rows]
        self._policy, self._writer, self._config, self._packs = policy, writer, config, packs
        self._first, self._processes, self._micro_batches = process * len(rows), processes, micro_batches
        self._whole = processes * micro_batches == 1
        self.contrastive_loss = float("nan")
        self._items: list[dict[Text, Tensor]] = [] if self._whole else self._differentiate()

    @property
    def _lm_share(self) -> float:
        return LM_SHARE if self._config.lm_loss_weight else 0.0

    def loss(self, model: nn.Module, part: int) -> tuple[Tensor, Tensor]:
        """What a micro-batch adds to the loss.

        Args:
            model: The policy, perhaps wrapped for several processes.
            part: Number of the micro-batch.

        Returns:
            Two scalars: InfoNCE, or what has its gradient, and the mean negative log-likelihood of a sample of the
            texts' tokens. Over micro-batches and processes their means count.
        """
        if self._whole:
            # The micro-batch is the batch: no vector has to be known before.
            rows = list({tuple(_texts(row)): row for row in self._rows}.values())
            places = _places(rows)
            pooled, language = embed_roles(
                model, self._policy, self._writer, list(places), packs=self._packs, lm_share=self._lm_share
            )
            rollouts, others, negatives = _by_row(pooled, rows, places)
            same_item = same_items(text_numbers(rows)).to(pooled.device)
            temperature = self._config.reward_temperature
            contrast = info_nce(rollouts[:, None], others, negatives, same_item=same_item, temperature=temperature)
            self.contrastive_loss = float(contrast.detach())
            return contrast, language
        gradients = _added(self._items[part :: self._micro_batches])
        # With fewer items than micro-batches, one has nothing to do, and takes part all the same.
        gradients = gradients or {text: 0 * gradient for text, gradient in self._items[0].items()}
        texts = list(gradients)
        vectors, language = embed_roles(
            model, self._policy, self._writer, texts, packs=self._packs, lm_share=self._lm_share
        )
        contrast = (vectors * torch.stack([gradients[text] for text in texts])).sum()
        return contrast * self._processes * self._micro_batches, language

    def _differentiate(self) -> list[dict[Text, Tensor]]:
        """The gradient of InfoNCE with respect to the vector of each text, for each item that falls to this process."""
        rows, policy, n = self._rows, self._policy, int(self._config.num_generations or 1)
        places, size = _places(rows), self._config.per_device_train_batch_size
        portions = [list(places)[start : start + size] for start in range(0, len(places), size)]
        training = policy.training
        policy.eval()
        with torch.no_grad():
            embedded = [embed_roles(policy, policy, self._writer, part, packs=self._packs)[0] for part in portions]
        policy.train(training)
        rollouts, others, negatives = _by_row(torch.cat(embedded), rows, places)
        found = pathwise_gradients(gather_batch(rows, rollouts, others, negatives, self._config, n))
        self.contrastive_loss = float(found.loss)
        items: list[dict[Text, Tensor]] = []
        for place, row in enumerate(rows):
            group, rollout = divmod(self._first + place, n)
            if rollout:
                continue
            gradients = [found.rollouts[group].sum(0), found.others[group]]
            if found.negatives is not None:
                gradients.append(found.negatives[group])
            # Rows may have negatives where others have none; then these count for nothing.
            items.append(_added([{text: gradient} for text, gradient in zip(_texts(row), gradients, strict=False)]))
        if not items:  # this process has to take part in the update all the same
            items.append({text: torch.zeros_like(rollouts[0]) for text in _texts(rows[0])})
        return items


def embed_roles(
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    texts: Sequence[Text],
    *,
    packs: bool,
    lm_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`embed_texts` of documents and queries together. Shapes: (texts, d), and a scalar."""
    vectors: list[Tensor] = [torch.empty(0)] * len(texts)
    losses: list[Tensor] = []
    for role in ("document", "query"):
        places = [place for place, (of, _) in enumerate(texts) if of == role]
        if not places:
            continue
        # Gradients of several processes are averaged by the wrapper, which one pass is enough to wake.
        wrapped, chosen = policy if losses else model, [texts[place][1] for place in places]
        found, loss = embed_texts(wrapped, policy, writer, chosen, role, packs=packs, lm_share=lm_share)
        losses.append(loss)
        for place, vector in zip(places, found, strict=True):
            vectors[place] = vector
    return torch.stack(vectors), torch.stack(losses).mean()


def _as_document(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document first: without rollouts a pair is the same either way, and more are told apart."""
    if row["role"] == "document":
        return row
    turned = {"prompt": "other", "role": "other_role", "other": "prompt", "other_role": "role"}
    return {**row, **{new: row[old] for new, old in turned.items()}}


def _texts(row: Mapping[str, Any]) -> list[Text]:
    negative = row.get("negative")
    others: list[Text] = [] if negative is None else [("document", negative)]
    return [(row["role"], row["prompt"]), (row["other_role"], row["other"]), *others]


def _places(rows: Sequence[Mapping[str, Any]]) -> dict[Text, int]:
    """The texts of some rows, each once, with a number."""
    places: dict[Text, int] = {}
    for row in rows:
        for text in _texts(row):
            places.setdefault(text, len(places))
    return places


def _added(items: Sequence[Mapping[Text, Tensor]]) -> dict[Text, Tensor]:
    """Gradients of several items; those of a text that occurs in more than one are added."""
    total: dict[Text, Tensor] = {}
    for item in items:
        for text, gradient in item.items():
            total[text] = total[text] + gradient if text in total else gradient
    return total


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
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    texts: Sequence[str],
    role: Role,
    *,
    packs: bool,
    lm_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Pooled vectors of texts alone, with gradients, and the loss of predicting a sample of their tokens.

    Args:
        model: The policy, perhaps wrapped for several processes.
        policy: The policy itself.
        writer: Renders texts.
        texts: Texts.
        role: Whose prompt they get.
        packs: Whether the policy runs flat sequences without padding.
        lm_share: Share of the tokens that are predicted. With 0 the loss is that of one token, for no use.

    Returns:
        Shape (texts, d), float32, and a scalar.
    """
    rendered = writer.render(texts, role)
    prompts, prefix = [text.input_ids for text in rendered], rendered[0].prefix_length
    chosen = [
        (row, place)
        for row, prompt in enumerate(prompts)
        for place in (prefix + (torch.rand(len(prompt) - prefix) < lm_share).nonzero()[:, 0]).tolist()
    ] or [(0, len(prompts[0]) - 1)]
    targets = torch.tensor([prompts[row][place] for row, place in chosen], device=policy.device)
    if packs:
        batch = PackedBatch(prompts, [()] * len(prompts), device=policy.device)
        batch.predict(chosen, targets)
        with packed_implementation(policy), captured_states(policy) as states:
            log_probs, _ = score_packed(model, policy, batch)
        weights = batch.pooling_weights([prefix] * len(prompts), [0] * len(prompts))
        return weights @ states[0][0].float(), -log_probs.mean()
    ids, mask = pad_right(prompts, policy.device)
    with captured_states(policy) as states:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows, places = (torch.tensor(list(column), device=policy.device) for column in zip(*chosen, strict=True))
    pooled = mask.bool()
    pooled[:, :prefix] = False
    predicted = logits[rows, places - 1].float()
    return pool_states(states[0], pooled), nn.functional.cross_entropy(predicted, targets)
