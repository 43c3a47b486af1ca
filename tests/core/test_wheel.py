"""What the wheel holds: the library, and neither recipes for one bundled model nor programs that measure once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="pip install hatchling")

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_library_alone() -> None:
    from hatchling.builders.wheel import WheelBuilder

    files = {included.distribution_path for included in WheelBuilder(str(ROOT)).recurse_included_files()}
    rooms = {Path(name).parts[0] for name in files}
    assert rooms == {
        "grace_retrieval", "grace_training", "grace_benchmarks",
        "langchain_grace", "llama_index", "haystack_integrations", "chroma_grace",
    }  # fmt: skip
    assert not [
        name
        for name in files
        if "programs" in name or "grace_nano" in name or "grace_small" in name or "test" in Path(name).parts
    ]
    for needed in (
        "grace_retrieval/models/grace-nano/model.safetensors",
        "grace_retrieval/py.typed",
        "grace_training/recipes/nano-grace.yaml",
        "grace_benchmarks/suites/quick.yaml",
    ):
        assert needed in files, needed
