"""Two processes see the batch as one: the same rollouts, rewards and weights after an update with and one without."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny-policy"

RUN = """
import json, os, sys
import numpy as np
from datasets import Dataset
from grace_retrieval import GraceEmbedder
from grace_training.config import GraceConfig
from grace_training.data import training_rows
from grace_training.processes import leave_process_group
from grace_training.trainer import GraceTrainer
from transformers import TrainerCallback

processes, folder = int(os.environ.get("WORLD_SIZE", "1")), sys.argv[2]
words = ["tides", "bread", "moon", "honey"]
columns = {"query": "what of", "positive": "a text on", "negative": "no"}
pairs = Dataset.from_list([{name: f"{text} {word}" for name, text in columns.items()} for word in words])
config = GraceConfig(output_dir=folder, per_device_train_batch_size=2 // processes, gradient_accumulation_steps=8,
                     num_generations=4, max_steps=2, rationale_every=2, learning_rate=1e-2,
                     lr_scheduler_type="constant", use_cpu=True, bf16=False,
                     gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True)
embedder = GraceEmbedder(sys.argv[1], cache=None, device="cpu", max_new_tokens=8)
embedder.writer.model.generation_config.eos_token_id = list(range(300, 400))
trainer = GraceTrainer(embedder, config, training_rows(pairs, config))
rewards = []


class Keep(TrainerCallback):
    def on_step_end(self, *_, **__):
        if trainer.batch.rewards is not None:
            rewards.append(trainer.batch.rewards.tolist())


trainer.add_callback(Keep())
trainer.train()
(total,) = rewards
if trainer.accelerator.is_main_process:
    weights = {name: p.detach().flatten()[:50].tolist() for name, p in trainer.policy.named_parameters()}
    print(json.dumps({"total": total, "weights": weights}), flush=True)
leave_process_group()
"""


def start(environment: dict[str, str], tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "run.py"
    script.write_text(RUN, encoding="utf-8")
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "training"))
    return subprocess.Popen(
        [sys.executable, str(script), str(TINY), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    found: dict[str, Any] = json.loads(outputs[0][0].strip().splitlines()[-1])
    return found


def test_two_processes_give_the_rewards_and_the_update_of_one(tmp_path: Path) -> None:
    one = result([start({}, tmp_path)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    two = result([start({**shared, "RANK": rank, "LOCAL_RANK": rank}, tmp_path) for rank in ("0", "1")])
    np.testing.assert_allclose(two["total"], one["total"], atol=1e-4)
    for name, values in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name], values, atol=1e-4, err_msg=name)
