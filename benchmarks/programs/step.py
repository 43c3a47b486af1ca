"""A training step beside a bare forward and backward pass over the same texts, and beside a step that writes.

    PYTHONPATH=benchmarks python -m programs.step                      # 32 pairs, texts alone
    PYTHONPATH=benchmarks python -m programs.step --rationales         # and two rollouts of each document

Generated titles and texts, LoRA on all linear layers. The bare pass is what anybody would write: texts of each role
sorted by length and padded in batches of 16, the mean of the squared states as the loss.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from transformers import TrainerCallback

from grace_benchmarks.memory import peak_bytes, reset_peak
from grace_benchmarks.record import write_result
from grace_retrieval import GraceEmbedder
from grace_retrieval.threads import hold_torch
from grace_training.config import GraceConfig
from grace_training.data import training_rows
from grace_training.trainer import GraceTrainer

WORDS = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()
TITLE, TEXT = (6, 14), (60, 180)  # words
BARE_ROWS = 16


def main(
    model: Annotated[str, typer.Option(help="Model.")] = "SmolLM2-135M-Instruct",
    pairs: Annotated[int, typer.Option(help="Pairs of an update.")] = 32,
    steps: Annotated[int, typer.Option(help="Updates that count; one before them does not.")] = 5,
    length: Annotated[int, typer.Option(help="Most tokens of a prompt with its text.")] = 256,
    rationales: Annotated[bool, typer.Option("--rationales", help="Measure updates with rationales as well.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Measure, print, and keep the rows."""
    hold_torch(threads)
    rows = []
    for written in (False, True)[: 1 + rationales]:
        embedder = GraceEmbedder(model, cache=None, max_seq_length=length, max_new_tokens=32, on_truncation="ignore")
        rows.append(training_step(embedder, pairs=pairs, steps=steps, written=written))
        Console().print(rows[-1])
    write_result("step", rows, model=model, pairs=pairs, steps=steps, length=length, threads=threads)


def training_step(embedder: GraceEmbedder, *, pairs: int, steps: int, written: bool) -> dict[str, Any]:
    """Time updates of a trainer, and for texts alone the bare pass in turns with them.

    Args:
        embedder: What is trained. Its weights change.
        pairs: Pairs of an update.
        steps: Updates that count.
        written: Whether two rationales of each document are written and learned from.

    Returns:
        Seconds of an update and of the bare pass (medians), their tokens, and the peak memory.
    """
    texts = _pairs(pairs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(embedder, texts, folder, steps=steps + 1, written=written)
        clock = _Clock(embedder.device, None if written else _Bare(trainer, embedder, texts))
        trainer.add_callback(clock)
        reset_peak()
        trainer.train()
    cuda = embedder.device.type == "cuda"
    row: dict[str, Any] = {
        "what": "two rollouts of each document" if written else "texts alone",
        "pairs": pairs,
        "device": embedder.device.type,
        "dtype": str(trainer.policy.dtype).removeprefix("torch."),
        "step_s": round(statistics.median(clock.steps[1:]), 3),
        "step_s_each": [round(seconds, 3) for seconds in clock.steps],
        "peak_gib": round((torch.cuda.max_memory_allocated() if cuda else peak_bytes()) / 2**30, 2),
    }
    if clock.bare is not None:
        bare = statistics.median(clock.bare_seconds[1:])
        row |= {"tokens": clock.bare.tokens, "bare_s": round(bare, 3), "bare_over_step": round(bare / row["step_s"], 3)}
    return row


class _Bare:
    """Forward and backward over the texts of an update, and nothing else."""

    def __init__(self, trainer: GraceTrainer, embedder: GraceEmbedder, texts: Sequence[tuple[str, str]]) -> None:
        self.trainer = trainer
        rows: list[list[int]] = []
        for role, chosen in (("query", [q for q, _ in texts]), ("document", [d for _, d in texts])):
            shown = embedder.pipeline.render(chosen, prompt=embedder.prompts[role])
            rows += sorted((list(text.input_ids) for text in shown), key=len)
        self.tokens = sum(map(len, rows))
        tokenizer = embedder.tokenizer
        self.batches = [
            tokenizer.pad({"input_ids": rows[first : first + BARE_ROWS]}, padding_side="right", return_tensors="pt")
            for first in range(0, len(rows), BARE_ROWS)
        ]

    def run(self) -> None:
        """One pass over all texts; the gradients are thrown away."""
        policy: Any = self.trainer.policy
        for batch in self.batches:
            with self.trainer.accelerator.autocast():
                states = policy.base_model(**batch.to(policy.device), use_cache=False).last_hidden_state
            (states.float() ** 2).mean().backward()
        for parameter in policy.parameters():
            parameter.grad = None


class _Clock(TrainerCallback):
    """Seconds of each update, with the bare pass before it."""

    def __init__(self, device: torch.device, bare: _Bare | None) -> None:
        self.device, self.bare = device, bare
        self.steps: list[float] = []
        self.bare_seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Run the bare pass, then start the clock."""
        if self.bare is not None:
            start = self._now()
            self.bare.run()
            self.bare_seconds.append(self._now() - start)
        self.start = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.steps.append(self._now() - self.start)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _trainer(
    embedder: GraceEmbedder, texts: Sequence[tuple[str, str]], folder: str, *, steps: int, written: bool
) -> GraceTrainer:
    config = GraceConfig(
        output_dir=folder,
        per_device_train_batch_size=2 * len(texts),
        gradient_accumulation_steps=1,
        num_generations=2,
        rationale_every=1 if written else 0,
        rollout_roles=["document"],
        max_steps=steps,
        learning_rate=1e-4,
        gradient_checkpointing=False,
        use_cpu=embedder.device.type == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = training_rows(Dataset.from_list([{"query": q, "positive": d} for q, d in texts]), config)
    lora = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, target_modules="all-linear")
    return GraceTrainer(embedder, config, rows, peft_config=lora)


def _pairs(count: int) -> list[tuple[str, str]]:
    choose = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(choose.choices(WORDS, k=choose.randint(least, most)))

    return [(f"{number} {words(*TITLE)}", f"{number} {words(*TEXT)}") for number in range(count)]


if __name__ == "__main__":
    typer.run(main)
