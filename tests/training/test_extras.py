"""What the extra `train` brings is enough to train and to evaluate; what only other extras bring is hidden here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="pip install 'grace-retrieval[train]'")

ROOT = Path(__file__).parents[2]

# Of every extra but `train`, by the names they are imported by.
HIDDEN = ("bm25s", "mteb", "faiss", "ray", "langchain_core", "llama_index", "haystack", "chromadb", "lancedb")

EVALUATE = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import json
import numpy as np
from grace_training.evaluation.measure import measure_set, open_for_evaluation
from grace_training.evaluation.plan import Evaluation, RetrievalSet
from grace_training.evaluation.sets import load_set
from grace_benchmarks.retrieval.metrics import significance
from grace_training.table import make_table
from grace_training.trainer import GraceTrainer

entry = RetrievalSet(name="pairs", path=sys.argv[1], document="abstract", queries=6, documents=8)
evaluation = Evaluation(name="e", sets=(entry,), max_new_tokens=4)
model = open_for_evaluation(sys.argv[2], evaluation, device="cpu")
found = measure_set(model, load_set(entry, evaluation), "rationale")
print(json.dumps(found["value"]))
"""


def test_the_extra_train_alone_evaluates(tmp_path: Path, tiny_policy: Path) -> None:
    rows = [{"id": str(i), "title": f"on {word}", "abstract": f"about {word}"} for i, word in enumerate("abcdefghij")]
    path = tmp_path / "pairs" / "pairs.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVALUATE.format(hidden=HIDDEN), str(path), str(tiny_policy)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "training", "benchmarks"))},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert 0 <= float(run.stdout.splitlines()[-1]) <= 1
