"""A tiny embedder whose rationales end, and a few pairs to train it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from datasets import Dataset

    from grace_retrieval import GraceEmbedder
    from grace_training.trainer import GraceTrainer

ENDS = range(300, 400)  # so many end tokens that a random policy hits one soon
WORDS = ("tides", "bread", "moon", "honey", "iron", "glass", "rain", "snow")


@pytest.fixture(autouse=True)
def quiet_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No progress bars, and the cache of `datasets` in a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def pairs() -> Dataset:
    """Eight pairs with negatives."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"query": f"what of {word}", "positive": f"a text on {word}, number {i}", "negative": f"other {word}"}
            for i, word in enumerate(WORDS)
        ]
    )


@pytest.fixture
def ending_embedder(make_embedder: Callable[..., GraceEmbedder]) -> GraceEmbedder:
    """tiny-policy with a hundred end tokens."""
    embedder = make_embedder()
    embedder.writer.model.generation_config.eos_token_id = list(ENDS)
    return embedder


@pytest.fixture
def make_trainer(tmp_path: Path, pairs: Dataset, ending_embedder: GraceEmbedder) -> Callable[..., GraceTrainer]:
    """`make_trainer(**options of GraceConfig)`: eight groups of four rollouts, two updates, nothing saved."""
    pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

    def make(
        *, rows: Dataset | None = None, embedder: Any = None, arguments: dict[str, Any] | None = None, **options: Any
    ) -> GraceTrainer:
        from grace_training.config import GraceConfig
        from grace_training.data import training_rows
        from grace_training.trainer import GraceTrainer

        config = GraceConfig(
            **{
                "output_dir": str(tmp_path / "run"),
                "per_device_train_batch_size": 16,
                "gradient_accumulation_steps": 2,
                "num_generations": 4,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "report_to": [],
                "save_strategy": "no",
                "logging_steps": 1,
                "disable_tqdm": True,
                **options,
            }
        )
        data = training_rows(pairs, config) if rows is None else rows
        return GraceTrainer(embedder or ending_embedder, config, data, **(arguments or {}))

    return make


@pytest.fixture(scope="session")
def ending_policy(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """tiny-policy in a folder of its own, with a hundred end tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("ending-policy")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model.generation_config.eos_token_id = [*range(300, 400)]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, pairs: Any, ending_policy: Path) -> Callable[..., Path]:
    """`recipe_file(method, **changes of training)`: a recipe of two steps on eight pairs."""
    pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")
    pairs.to_json(str(tmp_path / "pairs.jsonl"))

    def write(method: str, **training: Any) -> Path:
        import yaml

        grpo = {"num_generations": 4, "bf16": False, "gradient_checkpointing": False}
        content = {
            "method": method,
            "model": str(ending_policy),
            "embedder": {"max_new_tokens": 8, "device": "cpu"},
            "data_folder": str(tmp_path),
            "data": [{"path": "pairs.jsonl"}],
            "training": {
                "per_device_train_batch_size": 8,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "use_cpu": True,
                "disable_tqdm": True,
                "save_steps": 1,
                **(grpo if method in ("paper", "grace") else {}),
                **training,
            },
        }
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write
