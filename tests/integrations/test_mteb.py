"""mteb: the one line of docs/integrations/mteb.md, and a model that mteb loads by a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grace_retrieval import GraceEmbedder


@pytest.fixture
def mteb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    return pytest.importorskip("mteb", reason="the extra 'bench' is not installed")


def task() -> Any:
    """Classification of twelve sentences, made here."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    class TinyClassification(AbsTaskClassification):
        metadata = TaskMetadata(
            name="TinyClassification",
            description="Sea or bread.",
            reference=None,
            dataset={"path": "none", "revision": "1"},
            type="Classification",
            category="t2c",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )
        samples_per_label = 4
        n_experiments = 2

        def load_data(self, **_: Any) -> None:
            rows = {
                "text": [f"The sea rises {n}." for n in range(6)] + [f"Bread bakes {n}." for n in range(6)],
                "label": [0] * 6 + [1] * 6,
            }
            self.dataset = DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "test")})
            self.data_loaded = True

    return TinyClassification()


@pytest.mark.parametrize("way", ["the embedder itself", "a description"])
def test_mteb_evaluates_a_model(mteb: Any, tiny_policy: Path, way: str) -> None:
    embedder = GraceEmbedder(tiny_policy, max_new_tokens=8, device="cpu")
    model = embedder
    if way == "a description":
        from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper

        def load(name: str, revision: str | None = None, **_: Any) -> Any:
            return SentenceTransformerEncoderWrapper(embedder)

        model = ModelMeta.create_empty(overwrites={"name": "local/tiny-policy", "revision": "1", "loader": load})
    result = mteb.evaluate(model, task(), cache=None, show_progress_bar=False, co2_tracker=False)
    (scores,) = result.task_results[0].scores["test"]
    assert 0 <= scores["accuracy"] <= 1 and embedder.writer.engine.statistics()["texts"] == 12
    again = mteb.evaluate(model, task(), cache=None, show_progress_bar=False, co2_tracker=False)
    assert again.task_results[0].scores["test"][0]["accuracy"] == scores["accuracy"]
    assert embedder.writer.engine.statistics()["texts"] == 12, "the second evaluation comes from the cache"
