"""The Ray engine on a local cluster of two workers, one of which is killed: the index is that of the local engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grace_retrieval.indexing import BuildOptions, Document, build_index
from grace_retrieval.indexing.encoders import EmbedderEncoder
from grace_retrieval.indexing.vector_file import EmbedOptions, embed_to_file
from tests.indexing.test_interruption import same

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
ROOT = Path(__file__).parents[2]

TEXTS = [f"note {number}: " + "word " * (number % 20) for number in range(90)]

# A process of its own: Ray starts others, and speaks on its streams.
_BUILD = """
import sys, threading, time
from pathlib import Path
import psutil
from grace_retrieval import GraceEmbedder
from grace_retrieval.indexing import BuildOptions, Document
from grace_retrieval.indexing.build import build_with
from grace_retrieval.indexing.encoders import EmbedderEncoder
from grace_retrieval.indexing.runners import RayRunner
from grace_retrieval.indexing.vector_file import EmbedOptions, embed_to_file
from tests.indexing.test_ray import TEXTS

model, out = sys.argv[1], Path(sys.argv[2])
killed = []

def kill_one():
    while not killed:
        time.sleep(0.01)
        if len(list((out / "build").glob("*.parquet"))) < 2:
            continue
        for process in psutil.Process().children(recursive=True):
            if "ShardWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                break

embedder = GraceEmbedder(model, max_new_tokens=8, cache=None, device="cpu")
(out / "build").mkdir(parents=True)
threading.Thread(target=kill_one, daemon=True).start()
summary = build_with(
    EmbedderEncoder(embedder),
    [Document(id=str(n), text=text) for n, text in enumerate(TEXTS)],
    out,
    options=BuildOptions(shard_rows=6),
    runner=RayRunner(workers=2, cpus=0.5, cache=None),
)
embed_to_file(
    [Document(id=str(n), text=text) for n, text in enumerate(TEXTS)],
    out.with_name("ray.parquet"),
    EmbedderEncoder(embedder, role="query"),
    options=EmbedOptions(batch=30),
    runner=RayRunner(workers=1, cpus=0.5, cache=None),
)
import ray
ray.shutdown()
print("killed", len(killed), "resumed", summary.resumed)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray starts many processes, which on a busy machine takes minutes
def test_a_killed_worker_loses_nothing(
    make_embedder: Callable[..., GraceEmbedder], tiny_policy: Path, tmp_path: Path
) -> None:
    documents = [Document(id=str(number), text=text) for number, text in enumerate(TEXTS)]
    build_index(documents, tmp_path / "local", embedder=make_embedder(), options=BuildOptions(shard_rows=6))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(tiny_policy), str(tmp_path / "ray")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "killed 1 resumed 0" in done.stdout
    same(tmp_path / "local", tmp_path / "ray")
    encoder = EmbedderEncoder(make_embedder(max_new_tokens=8), role="query")
    embed_to_file(documents, tmp_path / "local.parquet", encoder, options=EmbedOptions(batch=30))
    assert (tmp_path / "local.parquet").read_bytes() == (tmp_path / "ray.parquet").read_bytes()
