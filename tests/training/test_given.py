"""Rationales that the data gives, a teacher, and batches of one source: losses equal to those computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_training.pooling import pool_sequences
from grace_training.sources import SourceSampler
from grace_training.teacher import Teacher, soft_target_loss
from grace_training.trainer import GraceTrainer

if TYPE_CHECKING:
    from datasets import Dataset

MakeTrainer = Callable[..., GraceTrainer]
TEMPERATURE = 0.1


@pytest.fixture
def given_rows(pairs: Dataset) -> Dataset:
    """Rows of the eight pairs with rationales of both texts, and without negatives."""
    from grace_training.config import GraceConfig
    from grace_training.data import training_rows

    words = [query.rsplit(" ", 1)[1] for query in pairs["query"]]
    pairs = pairs.remove_columns("negative")
    pairs = pairs.add_column("query_rationale", [f"all about {word}" for word in words])
    pairs = pairs.add_column("positive_rationale", [f"it tells of {word} at length" for word in words])
    return training_rows(pairs, GraceConfig(output_dir="unused", use_cpu=True, bf16=False))


class Numbers:
    """A teacher of two numbers a text, which count its letters."""

    def encode_document(self, texts: Sequence[str], **_: Any) -> torch.Tensor:
        return torch.tensor([[float(len(text)), text.count("o") + 1.0] for text in texts])

    encode_query = encode_document


def learn(trainer: GraceTrainer, micro_batches: int) -> dict[str, torch.Tensor]:
    """The gradient of one generation batch for which nothing is written."""
    trainer.current_gradient_accumulation_steps = micro_batches
    trainer.model.train()
    (inputs,) = [batch for _, batch in zip(range(1), trainer.get_train_dataloader(), strict=False)]
    output = trainer._generate_and_score_completions(inputs)
    assert not trainer.batch.rollouts
    trainer.model.zero_grad()
    for step in range(micro_batches):
        trainer._step = step
        trainer.compute_loss(trainer.model, output).backward()
    return {name: p.grad.clone() for name, p in trainer.policy.named_parameters() if p.grad is not None}


def by_hand(trainer: GraceTrainer, *, teacher: bool) -> torch.Tensor:
    """The loss of the same batch, text by text."""
    rows = trainer.batch.rows[::4]
    policy, writer, end = trainer.policy, trainer.writer, trainer.embedder.pipeline.tokenizer.eos_token_id
    end = end if end in writer.end_tokens else min(writer.end_tokens)
    pooled: dict[str, torch.Tensor] = {}
    losses: dict[str, list[torch.Tensor]] = {"document": [], "query": []}
    for role, text, rationale in (("document", "prompt", "rationale"), ("query", "other", "other_rationale")):
        alone, written = [], []
        for row in rows:
            (shown,) = writer.render([row[text]], role)  # type: ignore[arg-type]
            if row[rationale] is None:
                alone.append(pool_sequences(policy, [list(shown.input_ids)], shown.prefix_length)[0])
                written.append(alone[-1])
                continue
            ids = trainer.embedder.pipeline.tokenizer(row[rationale], add_special_tokens=False)["input_ids"]
            alone.append(pool_sequences(policy, [list(shown.input_ids)], shown.prefix_length)[0])
            written.append(pool_sequences(policy, [[*shown.input_ids, *ids]], shown.prefix_length)[0])
            start = len(shown.input_ids)
            logits = policy(torch.tensor([[*shown.input_ids, *ids, end]])).logits[0, start - 1 : -1]
            losses[role].append(cross_entropy(logits.float(), torch.tensor([*ids, end]), reduction="none"))
        pooled[role] = normalize(torch.stack(alone), dim=-1)
        pooled[f"{role}, written"] = normalize(torch.stack(written), dim=-1)
    seen = [Numbers().encode_document([row[name] for row in rows]) for name in ("prompt", "other")]
    scores = normalize(seen[0], dim=-1) @ normalize(seen[1], dim=-1).T / TEMPERATURE
    target = torch.arange(len(rows))
    total = torch.zeros(())
    for document, query in (("document", "query"), ("document, written", "query"), ("document", "query, written")):
        near = pooled[document] @ pooled[query].T / TEMPERATURE
        total = total + (cross_entropy(near, target) + cross_entropy(near.T, target)) / 2 / 3
        for mine, theirs in ((near, scores), (near.T, scores.T)) if teacher else ():
            p = theirs.softmax(-1)
            total = total + 0.5 * (p * (p.log() - mine.log_softmax(-1))).sum(-1).mean() / 2 / 3
    language = torch.stack([torch.cat(found).mean() for found in losses.values()]).mean()
    return total + 0.25 * language


def lack_some(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row without its document's rationale, its query's, both or none."""
    lacking = {"rationale": number % 4 in (1, 3), "other_rationale": number % 4 in (2, 3)}
    return {name: None for name, lacks in lacking.items() if lacks}


@pytest.mark.parametrize("share_prompts", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_given_rationales_have_the_gradient_of_texts_one_by_one(
    make_trainer: MakeTrainer, given_rows: Dataset, share_prompts: bool, teacher: bool, some: bool
) -> None:
    trainer = make_trainer(
        rows=given_rows.map(lack_some, with_indices=True) if some else given_rows,
        rationale_every=0,
        lm_loss_weight=0.25,
        teacher_weight=0.5,
        reward_temperature=TEMPERATURE,
        share_prompts=share_prompts,
        max_completion_length=64,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=1,
        arguments={"teacher": Teacher(Numbers()) if teacher else None},
    )
    found = learn(trainer, 1)
    trainer.model.zero_grad()
    by_hand(trainer, teacher=teacher).backward()
    for name, parameter in trainer.policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_micro_batches_have_the_gradient_of_the_whole_batch(make_trainer: MakeTrainer, given_rows: Dataset) -> None:
    gradients = [
        learn(
            make_trainer(
                rows=given_rows,
                rationale_every=0,
                lm_loss_weight=0.0,
                per_device_train_batch_size=32 // micro_batches,
                gradient_accumulation_steps=micro_batches,
                arguments={"teacher": Teacher(Numbers())},
            ),
            micro_batches,
        )
        for micro_batches in (1, 4)
    ]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    documents, queries = (normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2))
    scores = documents @ queries.T
    assert float(soft_target_loss(documents[:, None], queries, scores, temperature=0.1)) == pytest.approx(0, abs=1e-6)
    assert float(soft_target_loss(documents[:, None], queries, scores.T, temperature=0.1)) > 0.1


def test_batches_have_rows_of_one_source() -> None:
    from trl.trainer.utils import RepeatSampler

    sources = [0] * 10 + [1] * 7
    sampler = RepeatSampler(range(17), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=4)
    ours = SourceSampler(sampler, sources)
    rows = list(ours)
    assert len(rows) == len(ours) == (3 + 2) * 3 * 2 * 2
    batches = [rows[start : start + 6] for start in range(0, len(rows), 6)]
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert first == second, "each batch is repeated"
        assert len({sources[row] for row in first}) == 1 and first[::2] == first[1::2]
    assert {sources[batch[0]] for batch in batches} == {0, 1}
    once = [row for batch in batches[::2] for row in batch[::2]]
    assert len(set(once)) == len(once) == 15
    assert list(SourceSampler(RepeatSampler(range(17), 2, 3, 2, seed=4), sources)) == rows
    assert list(ours) != rows, "the next epoch has another order"


def test_a_given_rationale_beyond_the_budget_is_cut_and_has_no_end(
    make_trainer: MakeTrainer, given_rows: Dataset
) -> None:
    writer = make_trainer(rows=given_rows, rationale_every=0, max_completion_length=3).writer
    cut, nothing = writer.completions(["it tells of tides at length", None])
    whole = writer.embedder.pipeline.tokenizer("it tells of tides at length", add_special_tokens=False)["input_ids"]
    assert cut == whole[:3] and cut[-1] not in writer.end_tokens
    assert nothing == []
