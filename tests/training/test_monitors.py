"""Measures of collapse, reward hacking and forgetting, on cases whose values are known; and the monitor in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, InputError, Rationale
from grace_training.health import (
    compression_ratio,
    distinct_2,
    effective_rank,
    format_share,
    mean_cosine,
    perplexity,
    uniformity,
)

if TYPE_CHECKING:
    from grace_training.trainer import GraceTrainer

TEXTS = [f"a held-out text on subject {number}, unlike the others" for number in range(16)]


def rationale(text: str, *, truncated: bool = False) -> Rationale:
    return Rationale(text=text, token_ids=(1,), truncated=truncated, text_truncated=False)


def test_vectors_that_all_point_one_way() -> None:
    same = np.tile(np.eye(1, 8, dtype=np.float32), (5, 1))
    assert mean_cosine(same) == pytest.approx(1) and effective_rank(same) == pytest.approx(1)
    assert uniformity(same) == pytest.approx(0)


def test_vectors_at_right_angles() -> None:
    axes = np.eye(8, dtype=np.float32)
    assert mean_cosine(axes) == pytest.approx(0) and effective_rank(axes) == pytest.approx(8)
    assert uniformity(axes) == pytest.approx(-4)  # every pair at squared distance 2


def test_repeats_within_a_rationale_and_among_rationales() -> None:
    assert distinct_2([[1, 2, 3, 4]]) == 1 and distinct_2([[1, 1, 1, 1, 1]]) == 0.25 and distinct_2([[1], []]) == 1
    assert compression_ratio(["the same words again"] * 50) > 10 > 2 > compression_ratio(["q8#zT", "Lw0!d"])


def test_the_asked_format() -> None:
    texts = ["<think> a </think> b", "<think> a </think>", "no tags", "<think> never closed"]
    assert format_share([rationale(text) for text in texts]) == 0.25
    assert format_share([rationale(texts[0], truncated=True)]) == 0


def test_perplexity_of_a_policy_that_knows_nothing_is_the_size_of_its_vocabulary(
    make_model: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> None:
    import torch

    model, tokenizer = make_model("llama"), make_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    alone = perplexity(model, tokenizer, TEXTS[:1])
    together = perplexity(model, tokenizer, ["short one", *TEXTS], batch_size=4)
    assert alone["perplexity"] == together["perplexity"] == model.config.vocab_size


class TestMonitor:
    @pytest.fixture(autouse=True)
    def _needs_trl(self) -> None:
        pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

    def test_it_logs_keeps_samples_and_is_silent_while_all_is_well(
        self, make_trainer: Callable[..., GraceTrainer], tmp_path: Any
    ) -> None:
        from grace_training.monitors import Limits, Monitor

        trainer = make_trainer(learning_rate=1e-6)
        trainer.add_callback(Monitor(trainer, TEXTS, every=1, limits=Limits(truncated=1.0), samples=2))
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "monitor/perplexity" in entry]
        assert len(logged) == 2 and logged[0]["monitor/tokens"] > 0
        lines = (tmp_path / "run" / "sample_rationales.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 0, 1, 1, 2, 2]

    def test_a_policy_that_is_destroyed_is_reported_and_stopped(
        self, make_trainer: Callable[..., GraceTrainer], ending_embedder: GraceEmbedder
    ) -> None:
        from grace_training.monitors import Limits, Monitor, MonitorWarning

        trainer = make_trainer(learning_rate=10.0, max_steps=3)
        monitor = Monitor(trainer, TEXTS, every=1, limits=Limits(perplexity=1.01), stop=True)
        trainer.add_callback(monitor)
        with pytest.raises(MonitorWarning, match="Forgetting: the policy writes worse"):  # warnings are errors in tests
            trainer.train()

    def test_every_limit_has_words(self, make_trainer: Callable[..., GraceTrainer]) -> None:
        from grace_training.monitors import Monitor

        monitor = Monitor(make_trainer(), TEXTS)
        monitor.start = dict(
            mean_cosine=0.2, effective_rank=10, distinct_2=0.9, compression_ratio=2.0, truncated=0.0, perplexity=20.0,
            format_share=1.0,
        )  # fmt: skip
        assert monitor.warnings(monitor.start) == []
        bad = dict(
            mean_cosine=0.9, effective_rank=2, distinct_2=0.1, compression_ratio=9.0, truncated=0.9, perplexity=90.0,
            format_share=0.1,
        )  # fmt: skip
        messages = monitor.warnings(bad)
        assert [message.split(":")[0] for message in messages] == (
            ["Collapse"] * 2 + ["Reward hacking"] * 3 + ["Forgetting"] * 2
        )

    def test_too_few_texts_are_refused(self, make_trainer: Callable[..., GraceTrainer]) -> None:
        from grace_training.monitors import Monitor

        with pytest.raises(InputError, match="16 or more different"):
            Monitor(make_trainer(), TEXTS[:15] + TEXTS[:1])
        with pytest.raises(InputError, match="every=0"):
            Monitor(make_trainer(), TEXTS, every=0)
