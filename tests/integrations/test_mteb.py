"""mteb: the one line of docs/integrations/mteb.md, and a model that mteb loads by a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grace_retrieval import GraceEmbedder


@pytest.fixture
def mteb() -> Any:
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


def test_the_revision_changes_with_whatever_changes_a_vector(tiny_policy: Path, tmp_path: Path) -> None:
    """mteb keeps results by name and revision; without one it answers with another model's figures."""
    import shutil

    first, second = tmp_path / "a" / "policy", tmp_path / "b" / "policy"
    for folder in (first, second):
        shutil.copytree(tiny_policy, folder)
    options = {"cache": None, "device": "cpu", "max_new_tokens": 4}
    embedders = [
        GraceEmbedder(first, **options),  # type: ignore[arg-type]
        GraceEmbedder(first, **options, system_prompt="Name the topic."),  # type: ignore[arg-type]
        GraceEmbedder(first, **options, truncate_dim=8),  # type: ignore[arg-type]
        GraceEmbedder(second, **options),  # type: ignore[arg-type]
    ]
    cards = [embedder.model_card_data for embedder in embedders]  # what mteb takes name and revision from
    assert {card.model_name for card in cards} == {"policy"}
    revisions = [card.base_model_revision for card in cards]
    assert revisions[0] == embedders[0].vector_identity().digest()
    assert revisions[3] == revisions[0], "the same model in another folder"
    assert len(set(revisions)) == 3
    embedders[3].writer.model.get_output_embeddings().weight.data.add_(1)
    assert embedders[3].model_card_data.base_model_revision != revisions[0], "weights that were trained on"


def test_figures_of_another_model_do_not_come_out_of_the_result_cache(
    mteb: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    """Of another prompt, and of other weights in a folder of the same name."""
    import shutil

    from transformers import AutoModelForCausalLM

    retrained = tmp_path / "again" / tiny_policy.name
    shutil.copytree(tiny_policy, retrained)
    model = AutoModelForCausalLM.from_pretrained(retrained)
    model.get_output_embeddings().weight.data.mul_(-1)
    model.save_pretrained(retrained)
    results = mteb.ResultCache(tmp_path)  # mteb's default is a folder of the user, settled when mteb is imported
    options = {"cache": None, "device": "cpu", "max_new_tokens": 2}
    for folder, system_prompt in ((tiny_policy, None), (tiny_policy, "Name the topic."), (retrained, None)):
        embedder = GraceEmbedder(folder, system_prompt=system_prompt, **options)  # type: ignore[arg-type]
        mteb.evaluate(embedder, tasks=[task()], cache=results)
        assert embedder.writer.engine.statistics()["texts"] > 0, "it was evaluated itself"
    again = GraceEmbedder(retrained, **options)  # type: ignore[arg-type]
    mteb.evaluate(again, tasks=[task()], cache=results)
    assert again.writer.engine.statistics()["texts"] == 0, "its own figures are found"
