"""Training within a wall-clock budget: resumable, ended by SIGTERM at any time, annealed whatever the speed.

The learning rate and the phase depend on the active training time spent so far, not on a number of steps, so
the run ends annealed on a busy machine too; it just sees fewer tokens.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from grace_nano.checkpoint import export_model, load_checkpoint, save_checkpoint
from grace_nano.model import FastLoss, build_model
from grace_nano.packing import Batch, BatchStream, Mixture, fill_row, make_batch
from grace_nano.prepare import load_tokenizer, store_folder
from grace_nano.recipe import PhaseRecipe, Recipe, TrainingRecipe
from grace_nano.schedule import learning_rate_factor
from grace_nano.store import RATIONALE, TEXT, ExampleStore
from grace_nano.tokenizer import END_OF_TEXT, IM_END, token_id

__all__ = ["Trainer", "make_optimizers", "target_weights"]

_LOG = logging.getLogger(__name__)


def make_optimizers(model: LlamaForCausalLM, options: TrainingRecipe) -> dict[str, torch.optim.Optimizer]:
    """Make Muon for the matrices of the layers and AdamW for the embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed_tokens" in n]
    muon = torch.optim.Muon(
        matrices,
        lr=options.muon_lr,
        momentum=options.muon_momentum,
        weight_decay=options.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=options.adam_lr, betas=options.adam_betas, weight_decay=0.0, fused=True)
    return {"muon": muon, "adam": adam}


def target_weights(batch: Batch, text_weight: float) -> torch.Tensor:
    """Loss weights of a batch: `text_weight` on text, 1 on rationales. Shape: (rows, row_length)."""
    table = np.zeros(3, dtype=np.float32)
    table[TEXT], table[RATIONALE] = text_weight, 1.0
    return torch.from_numpy(table[batch.kinds])


class Trainer:
    """One run of a recipe.

    Args:
        recipe: The recipe.
        run: Name of the run; its checkpoints and log go to `<work>/<run>/`.
        budget_seconds: Replaces the recipe's budget.
        preview: Folder that gets the current model at every checkpoint.
        compiled: Compile the layers.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: str,
        budget_seconds: float | None = None,
        preview: Path | None = None,
        compiled: bool = True,
    ) -> None:
        torch.set_num_threads(recipe.training.threads)
        self.recipe = recipe
        self.options = recipe.training
        self.budget = budget_seconds or recipe.training.budget_seconds
        self.folder = recipe.work / run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.preview = preview
        tokenizer = load_tokenizer(recipe)
        self.pad_id = token_id(tokenizer, END_OF_TEXT)
        end_id = token_id(tokenizer, IM_END)
        self.model = build_model(recipe.model, tokenizer.get_vocab_size(), end_id, self.pad_id, recipe.seed)
        self.loss = FastLoss(self.model, compiled)
        self.optimizers = make_optimizers(self.model, self.options)
        self.progress: dict[str, Any] = {
            "step": 0,
            "tokens": 0,
            "targets": 0,
            "seconds": 0.0,
            "positions": {},
        }
        restored = load_checkpoint(self.folder / "checkpoints", self.model, self.optimizers)
        if restored is not None:
            self.progress = restored
            _LOG.info("resumed at step %d, %.0f s", restored["step"], restored["seconds"])
        self._base_rates = {"muon": self.options.muon_lr, "adam": self.options.adam_lr}
        self._stop = False
        self._stream: BatchStream | None = None
        self._phase: PhaseRecipe | None = None

    def run(self) -> None:
        """Train until the budget is spent or SIGTERM or SIGINT comes; then write a checkpoint."""
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        last = time.monotonic()
        spent = float(self.progress["seconds"])
        next_checkpoint, next_eval = spent + self.options.checkpoint_seconds, spent
        window: list[float] = []
        while not self._stop and spent < self.budget:
            fraction = spent / self.budget
            self._enter_phase(fraction)
            factor = learning_rate_factor(fraction, self.options.warmup_fraction, self.options.decay_start)
            window.append(self._step(factor))
            now = time.monotonic()
            spent += now - last
            last = now
            self.progress["seconds"] = spent
            if self.progress["step"] % self.options.log_steps == 0:
                self._log(loss=round(float(np.mean(window)), 4), lr=round(factor, 4))
                window.clear()
            if spent >= next_eval:
                self._log(**self.dev_losses())
                next_eval = spent + self.options.eval_seconds
            if spent >= next_checkpoint:
                self.save()
                next_checkpoint = spent + self.options.checkpoint_seconds
        self._log(**self.dev_losses())
        self.save()

    def save(self) -> None:
        """Write a checkpoint, and the preview where one is wanted."""
        if self._stream is not None and self._phase is not None:
            self.progress["positions"][self._phase.name] = self._stream.mixture.positions
        save_checkpoint(self.folder / "checkpoints", self.model, self.optimizers, self.progress)
        if self.preview is not None:
            self.export(self.preview)

    def export(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the present model, with its tokenizer, as a folder for the stock classes."""
        export_model(self.model, self.recipe.work / "tokenizer", folder, dtype)

    @torch.no_grad()
    def dev_losses(self) -> dict[str, float]:
        """Mean loss a token on fixed dev papers: plain text, and text and rationale in chat form."""
        result: dict[str, float] = {}
        length = max(self.options.row_lengths)
        for name in ("dev_lm", "dev_chat"):
            folder = store_folder(self.recipe, name)
            if not folder.exists():
                continue
            store = ExampleStore.load(folder)
            pool = [store[index] for index in range(min(self.options.dev_examples, len(store)))]
            sums = dict.fromkeys((TEXT, RATIONALE), 0.0)
            counts = dict.fromkeys((TEXT, RATIONALE), 0)
            while pool:
                count = self.options.tokens_per_step // length
                rows = [fill_row(pool, length) if pool else [] for _ in range(count)]
                batch = make_batch(rows, length, self.pad_id)
                _, losses, chosen = self._loss(batch, 1.0)
                kinds = torch.from_numpy(batch.kinds).flatten()[chosen]
                for kind in sums:
                    sums[kind] += float(losses[kinds == kind].sum())
                    counts[kind] += int((kinds == kind).sum())
            for kind, label in ((TEXT, "text"), (RATIONALE, "rationale")):
                if counts[kind]:
                    result[f"{name}_{label}"] = round(sums[kind] / counts[kind], 4)
        return result

    def _loss(
        self, batch: Batch, text_weight: float, unlikelihood: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.loss(
            torch.from_numpy(batch.ids),
            torch.from_numpy(batch.documents),
            torch.from_numpy(batch.positions),
            target_weights(batch, text_weight),
            torch.from_numpy(batch.kinds),
            unlikelihood,
        )

    def _step(self, factor: float) -> float:
        if self._stream is None:
            raise RuntimeError("no phase has been entered")
        batch = self._stream.next_batch()
        loss, _, chosen = self._loss(batch, self.options.text_weight, self.options.unlikelihood)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._base_rates[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress["step"] += 1
        self.progress["tokens"] += int((batch.documents >= 0).sum())
        self.progress["targets"] += len(chosen)
        return float(loss.detach())

    def _enter_phase(self, fraction: float) -> None:
        phase = self.recipe.phase_at(fraction)
        if self._phase is phase:
            return
        stores = {name: ExampleStore.load(store_folder(self.recipe, name)) for name in phase.mixture}
        mixture = Mixture(stores, phase.mixture, self.recipe.seed)
        mixture.positions.update(self.progress["positions"].get(phase.name, {}))
        self._stream = BatchStream(mixture, self.options.row_lengths, self.options.tokens_per_step, self.pad_id)
        self._phase = phase
        _LOG.info("phase %s", phase.name)

    def _log(self, **values: float) -> None:
        entry = {
            "step": self.progress["step"],
            "tokens": self.progress["tokens"],
            "seconds": round(float(self.progress["seconds"]), 1),
            "phase": self._phase.name if self._phase else "",
            **values,
        }
        line = json.dumps(entry)
        _LOG.info("%s", line)
        with (self.folder / "loss.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        _LOG.info("signal %d: stopping after this step", number)
        self._stop = True
