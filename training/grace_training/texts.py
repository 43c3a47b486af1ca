"""Batches for which nothing is written: InfoNCE on texts alone, and on texts with the rationales that the data gives.

A rationale costs several times what its text costs, and most of what a policy learns about telling texts apart it
learns from the texts. So a trainer may leave writing out of most batches (`rationale_every`), or of all.

Where the data gives rationales, they are run behind their texts, in the same pass. Attention is causal: the states of a
text are those that it has alone, so one pass gives both vectors, and the loss of predicting the rationale besides. Each
role's rationales have to be found by the *text* of the other role: two given rationales of a pair often say the same in
the same words, and being found by each other would teach to look for words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from torch import Tensor, nn

from grace_training.packing import PackedBatch, packed_implementation, score_packed
from grace_training.pooling import captured_states, pad_right, pool_states
from grace_training.rollouts import GivenText, PolicyWriter
from grace_training.scoring import info_nce, same_items, text_numbers
from grace_training.teacher import Teacher, soft_target_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grace_training.config import GraceConfig

__all__ = ["TextBatch", "embed_roles", "embed_texts"]

LM_SHARE = 0.25
"""Share of a text's tokens that are predicted: the head is a large part of a small policy; a sample says as much."""


class TextBatch:
    """A generation batch for which nothing is written.

    Its negatives come from all micro-batches and processes. Where there are several, the loss is differentiated by the
    vectors first, as that of rollouts is, which costs a forward pass more.

    Args:
        rows: This process's rows, one a rollout that is not written.
        policy: The policy, not wrapped for several processes.
        writer: Renders texts.
        config: Options.
        packs: Whether the policy runs flat sequences without padding.
        teacher: Another model whose similarities are soft targets; None: InfoNCE alone.
        process: Number of this process.
        processes: How many there are.
        micro_batches: How many the batch is learned from in.

    Attributes:
        contrastive_loss: InfoNCE of the batch; nan until it is known.
        teacher_loss: Divergence from the teacher; nan without one, or until it is known.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        policy: PreTrainedModel,
        writer: PolicyWriter,
        config: GraceConfig,
        *,
        packs: bool,
        teacher: Teacher | None = None,
        process: int = 0,
        processes: int = 1,
        micro_batches: int = 1,
    ) -> None:
        self._policy, self._writer, self._config, self._packs = policy, writer, config, packs
        self._teacher = teacher
        n = int(config.num_generations or 1)
        self._processes, self._micro_batches = processes, micro_batches
        self._whole = processes * micro_batches == 1
        self.contrastive_loss = self.teacher_loss = float("nan")
        self._first = process * len(rows)
        self._rows = [_as_document(row) for row in rows]
        self._items: list[dict[GivenText, Tensor]] = []
        if self._whole:
            self._rows = list({_texts(row): row for row in self._rows}.values())
        else:
            self._items = self._differentiate(n)

    @property
    def _lm_share(self) -> float:
        return LM_SHARE if self._config.lm_loss_weight else 0.0

    def loss(self, model: nn.Module, part: int) -> tuple[Tensor, Tensor]:
        """What a micro-batch adds to the loss.

        Args:
            model: The policy, perhaps wrapped for several processes.
            part: Number of the micro-batch.

        Returns:
            Two scalars: InfoNCE with the teacher's part, and the mean negative log-likelihood of the given rationales'
            tokens, or of a sample of the texts'. Over micro-batches and processes their means count.
        """
        if self._whole:
            # The micro-batch is the batch: no vector has to be known before.
            places = _places(self._rows)
            pooled, language = self._embed(model, list(places))
            same_item = same_items(text_numbers(self._rows)).to(pooled.device)
            seen = None if self._teacher is None else self._teacher(list(places)).to(pooled.device)
            contrast = self._contrast(
                _by_row(pooled, self._rows, places),
                same_item,
                None if seen is None else _by_row(seen, self._rows, places),
            )
            return contrast, language
        gradients = _added(self._items[part :: self._micro_batches])
        # With fewer items than micro-batches, one has nothing to do, and takes part all the same.
        gradients = gradients or {text: 0 * gradient for text, gradient in self._items[0].items()}
        vectors, language = self._embed(model, list(gradients))
        contrast = (vectors * torch.stack(list(gradients.values()))).sum()
        return contrast * self._processes * self._micro_batches, language

    def _embed(self, model: nn.Module, texts: Sequence[GivenText]) -> tuple[Tensor, Tensor]:
        return embed_roles(model, self._policy, self._writer, texts, packs=self._packs, lm_share=self._lm_share)

    def _contrast(self, vectors: Tensor, same_item: Tensor, seen: Tensor | None) -> Tensor:
        """InfoNCE of texts alone and of each role's rationales against the other's texts, with the teacher's part.

        Args:
            vectors: Of documents, queries and perhaps negatives, alone and with rationale. Shape: (B, 2 or 3, 2, d).
            same_item: Pairs that are no negatives of each other. Shape: (B, B), bool.
            seen: The teacher's vectors of documents and queries, if there is one. Shape: (B, 2 or 3, teacher's d).
        """
        documents, queries = vectors[:, 0], vectors[:, 1]
        negatives = vectors[:, 2, 0] if vectors.shape[1] == 3 else None
        temperature = self._config.reward_temperature
        if any(text.rationale for row in self._rows for text in _texts(row)):
            directions = [(documents, queries[:, 0]), (documents[:, :1], queries[:, 1])]
        else:
            directions = [(documents[:, :1], queries[:, 0])]
        counts = [rollouts.shape[1] for rollouts, _ in directions]
        losses, distances = [], []
        for rollouts, others in directions:
            losses.append(info_nce(rollouts, others, negatives, same_item=same_item, temperature=temperature))
            if seen is not None:
                scores = seen[:, 0] @ seen[:, 1].T
                distances.append(soft_target_loss(rollouts, others, scores, temperature=temperature))
        total = _weighted(losses, counts)
        self.contrastive_loss = float(total.detach())
        if distances:
            distance = _weighted(distances, counts)
            self.teacher_loss = float(distance.detach())
            total = total + self._config.teacher_weight * distance
        return total

    def _differentiate(self, n: int) -> list[dict[GivenText, Tensor]]:
        """The gradient of the loss by the vectors of each text, for each item that falls to this process."""
        rows, policy = self._rows, self._policy
        places, size = _places(rows), self._config.per_device_train_batch_size
        portions = [list(places)[start : start + size] for start in range(0, len(places), size)]
        training = policy.training
        policy.eval()
        with torch.no_grad():
            pooled = torch.cat([self._embed(policy, part)[0] for part in portions])
        policy.train(training)
        gathered = gather(_by_row(pooled, rows, places))[::n].detach().clone().requires_grad_()
        same_item = same_items(gather(text_numbers(rows).to(pooled.device))[::n])
        seen = None
        if self._teacher is not None:
            seen = gather(_by_row(self._teacher(list(places)).to(pooled.device), rows, places))[::n]
        with torch.enable_grad(), torch.autocast(gathered.device.type, enabled=False):
            (found,) = torch.autograd.grad(self._contrast(gathered, same_item, seen), gathered)
        items: list[dict[GivenText, Tensor]] = []
        for place, row in enumerate(rows):
            group, rollout = divmod(self._first + place, n)
            if rollout:  # the n rows of a group say the same
                continue
            # Rows may have negatives where others have none; then these count for nothing.
            items.append(_added([{text: g} for text, g in zip(_texts(row), found[group], strict=False)]))
        if not items:  # this process has to take part in the update all the same
            items.append({text: torch.zeros_like(found[0, 0]) for text in _texts(rows[0])})
        return items


def embed_roles(
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    texts: Sequence[GivenText],
    *,
    packs: bool,
    lm_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`embed_texts` of documents and queries together. Shapes: (texts, 2, d), and a scalar."""
    vectors: list[Tensor] = [torch.empty(0)] * len(texts)
    losses: list[Tensor] = []
    for role in ("document", "query"):
        places = [place for place, text in enumerate(texts) if text.role == role]
        if not places:
            continue
        # Gradients of several processes are averaged by the wrapper, which one pass is enough to wake.
        wrapped, chosen = policy if losses else model, [texts[place] for place in places]
        found, loss = embed_texts(wrapped, policy, writer, chosen, packs=packs, lm_share=lm_share)
        losses.append(loss)
        for place, vector in zip(places, found, strict=True):
            vectors[place] = vector
    return torch.stack(vectors), torch.stack(losses).mean()


def embed_texts(
    model: nn.Module,
    policy: PreTrainedModel,
    writer: PolicyWriter,
    texts: Sequence[GivenText],
    *,
    packs: bool,
    lm_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Pooled vectors of texts, with gradients, and the loss of predicting their rationales, or some of their tokens.

    Args:
        model: The policy, perhaps wrapped for several processes.
        policy: The policy itself.
        writer: Renders texts.
        texts: Texts of one role.
        packs: Whether the policy runs flat sequences without padding.
        lm_share: Share of the texts' tokens that are predicted where no text has a rationale. With 0 the loss is that
            of one token, for no use.

    Returns:
        Vectors of each text alone and with its rationale, the same where it has none. Shape (texts, 2, d), float32. And
        a scalar.
    """
    rendered = writer.render([text.text for text in texts], texts[0].role)
    prompts, prefix = [list(text.input_ids) for text in rendered], rendered[0].prefix_length
    completions = writer.completions([text.rationale for text in texts])
    if any(completions):
        chosen = [
            (row, len(prompts[row]) + place) for row, tokens in enumerate(completions) for place in range(len(tokens))
        ]
    else:
        chosen = [
            (row, place)
            for row, prompt in enumerate(prompts)
            for place in (prefix + (torch.rand(len(prompt) - prefix) < lm_share).nonzero()[:, 0]).tolist()
        ] or [(0, len(prompts[0]) - 1)]
    sequences = [prompt + tokens for prompt, tokens in zip(prompts, completions, strict=True)]
    targets = torch.tensor([sequences[row][place] for row, place in chosen], device=policy.device)
    # The token that ends a rationale is predicted, and not pooled.
    written = [len(tokens) - (tokens[-1:] != [] and tokens[-1] in writer.end_tokens) for tokens in completions]
    nothing = [0] * len(texts)
    if packs:
        batch = PackedBatch(prompts, completions, device=policy.device)
        if not any(completions):
            batch.predict(chosen, targets)
        with packed_implementation(policy), captured_states(policy) as states:
            log_probs, _ = score_packed(model, policy, batch)
        flat = states[0][0].float()
        with torch.autocast(flat.device.type, enabled=False):
            pooled = [batch.pooling_weights([prefix] * len(texts), lengths) @ flat for lengths in (nothing, written)]
        return torch.stack(pooled, 1), -log_probs.mean()
    ids, mask = pad_right(sequences, policy.device)
    with captured_states(policy) as states:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows, columns = (torch.tensor(list(column), device=policy.device) for column in zip(*chosen, strict=True))
    place = torch.arange(ids.shape[1], device=policy.device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)[:, None]
    pooled = [
        pool_states(
            states[0], (place >= prefix) & (place < starts + torch.tensor(lengths, device=policy.device)[:, None])
        )
        for lengths in (nothing, written)
    ]
    predicted = logits[rows, columns - 1].float()
    return torch.stack(pooled, 1), nn.functional.cross_entropy(predicted, targets)


def _as_document(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document first: without rollouts a pair is the same either way, and more are told apart."""
    if row["role"] == "document":
        return row
    turned = {"prompt": "other", "role": "other_role", "rationale": "other_rationale"}
    turned |= {new: old for old, new in turned.items()}
    return {**row, **{new: row[old] for new, old in turned.items() if old in row}}


def _texts(row: Mapping[str, Any]) -> tuple[GivenText, ...]:
    """A row's document, query and perhaps negative."""
    document = GivenText(row["role"], row["prompt"], row.get("rationale"))
    query = GivenText(row["other_role"], row["other"], row.get("other_rationale"))
    negative = row.get("negative")
    return (document, query) if negative is None else (document, query, GivenText("document", negative))


def _places(rows: Sequence[Mapping[str, Any]]) -> dict[GivenText, int]:
    """The texts of some rows, each once, with a number."""
    places: dict[GivenText, int] = {}
    for row in rows:
        for text in _texts(row):
            places.setdefault(text, len(places))
    return places


def _added(items: Sequence[Mapping[GivenText, Tensor]]) -> dict[GivenText, Tensor]:
    """Gradients of several items; those of a text that occurs in more than one are added."""
    total: dict[GivenText, Tensor] = {}
    for item in items:
        for text, gradient in item.items():
            total[text] = total[text] + gradient if text in total else gradient
    return total


def _by_row(found: Tensor, rows: Sequence[Mapping[str, Any]], places: Mapping[GivenText, int]) -> Tensor:
    """What was found for each row's document, query and, if all have one, negative. Shape: (rows, 2 or 3, …)."""
    count = 2 if any(row.get("negative") is None for row in rows) else 3
    return found[torch.tensor([[places[text] for text in _texts(row)[:count]] for row in rows], device=found.device)]


def _weighted(values: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """A mean of scalars."""
    return (torch.stack(list(values)) * torch.tensor(weights, device=values[0].device)).sum() / sum(weights)
