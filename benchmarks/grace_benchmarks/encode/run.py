"""Measures the engine over rationale budgets, batch budgets and cache states; finished budgets are not repeated."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_benchmarks.encode.pipelines import (
    Policy,
    one_pass,
    random_policy,
    random_requests,
    real_policy,
    render,
    straightforward,
)
from grace_benchmarks.memory import peak_bytes, reset_peak
from grace_benchmarks.record import Row, RowFile, Timing, measure, row_key
from grace_benchmarks.retrieval.names import model_name
from grace_retrieval import GraceEmbedder, RationaleRequest
from grace_retrieval.advice import advise
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.errors import InputError
from grace_retrieval.threads import hold_torch

__all__ = ["EncodeOptions", "run_encode"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How encoding is measured.

    Args:
        model: Name or folder; "random" is a random policy of about 50M parameters.
        texts: Number of texts.
        budgets: Most tokens of a rationale, one group of rows each; 0 is no rationale.
        batch_tokens: Most tokens of a batch; None lets the engine choose.
        repeats: Runs of everything, in turns.
        singles: Texts that are also run one at a time.
        threads: Threads of torch.
        device: Such as "cuda".
        seed: Seed of the random policy and texts.
        run: Number of this run: another number measures everything again.

    Raises:
        InputError: If a value is out of range.
    """

    model: str = DEFAULT_MODEL
    texts: int = 64
    budgets: Sequence[int] = (0, 16, 64, 256)
    batch_tokens: Sequence[int | None] = (None,)
    repeats: int = 3
    singles: int = 8
    threads: int = 1
    device: str | None = None
    seed: int = 0
    run: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("texts", "repeats", "singles", "threads", "run"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: give a positive number.")
        if (
            not self.budgets
            or any(b < 0 for b in self.budgets)
            or any(t is not None and t < 1 for t in self.batch_tokens)
        ):
            raise InputError(
                f"budgets={list(self.budgets)}, batch_tokens={list(self.batch_tokens)}: give 0 or more, and 1 or more."
            )


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One thing that is timed."""

    pipeline: str
    batch_tokens: int | None = None
    cache: str = "none"
    single: bool = False


def run_encode(
    texts: Sequence[str],
    options: EncodeOptions,
    *,
    out: RowFile,
    say: Callable[[Row], None] = lambda row: None,
) -> int:
    """Measure all settings of every budget, in turns.

    Args:
        texts: At least as many texts as are measured (not read for the random policy).
        options: How.
        out: Where rows go.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If there are too few texts, or the context of the model is too short for a budget.
    """
    if options.model != "random" and len(texts) < options.texts:
        raise InputError(
            f"{len(texts)} texts are there and {options.texts} are to be measured. "
            + advise("measure fewer", ("give more ({})", "--data", "texts"))
        )
    hold_torch(options.threads)
    finished, bench = 0, None
    for budget in options.budgets:
        keys = {setting: _key(options, setting, budget) for setting in _settings(options)}
        done = sum(key in out for key in keys.values())
        finished += done
        if done == len(keys):
            continue
        bench = bench or _Bench(options, texts[: options.texts])
        for setting, row in bench.measure(budget).items():
            if keys[setting] not in out:
                say(out.append({"key": keys[setting], **_identity(options, setting, budget), "status": "ok", **row}))
    return finished


def _settings(options: EncodeOptions) -> list[_Setting]:
    found = [_Setting(pipeline="straightforward")]
    found += [_Setting(pipeline="one pass", batch_tokens=tokens) for tokens in options.batch_tokens]
    found += [_Setting(pipeline=pipeline, single=True) for pipeline in ("straightforward", "one pass")]
    if options.model != "random":
        found += [_Setting(pipeline="one pass", cache=state) for state in ("cold", "warm")]
    return found


def _identity(options: EncodeOptions, setting: _Setting, budget: int) -> Row:
    chosen = {name: getattr(options, name) for name in ("texts", "repeats", "threads", "device", "seed", "run")}
    model = model_name(options.model)
    return {"kind": "encode", "model": model, "max_new_tokens": budget, **asdict(setting), **chosen}


def _key(options: EncodeOptions, setting: _Setting, budget: int) -> str:
    return row_key(_identity(options, setting, budget))


class _Bench:
    """A policy, and what runs it."""

    def __init__(self, options: EncodeOptions, texts: Sequence[str]) -> None:
        self.options = options
        self.texts = list(texts)
        self.embedder: GraceEmbedder | None = None
        if options.model == "random":
            self.policy: Policy = random_policy(options.seed)
        else:
            self.embedder = GraceEmbedder(options.model, cache=None, device=options.device, on_truncation="ignore")
            self._check_budgets(self.embedder)
            self.policy = real_policy(self.embedder)
        self.engines = {
            tokens: TransformersEngine(self.policy.model, end_tokens=self.policy.end_tokens, max_batch_tokens=tokens)
            for tokens in (*options.batch_tokens, None)
        }

    def _check_budgets(self, embedder: GraceEmbedder) -> None:
        """Refuse a budget that the context has no room for, before the others are measured."""
        options = embedder.pipeline.options
        before = options.max_new_tokens, options.max_seq_length
        for budget in self.options.budgets:
            options.configure(max_new_tokens=budget)
        options.configure(max_new_tokens=before[0], max_seq_length=before[1])

    def measure(self, budget: int) -> dict[_Setting, Row]:
        """Run every setting in turns."""
        if self.embedder is None:
            requests = random_requests(self.options.texts, budget, self.options.seed)
        else:
            requests = render(self.embedder, self.texts, budget)
        settings = _settings(self.options)
        times: dict[_Setting, list[Timing]] = {setting: [] for setting in settings}
        peaks = dict.fromkeys(settings, 0)
        counts: dict[_Setting, Counter[str]] = {}
        vectors: dict[_Setting, Vectors] = {}
        self._warm_up(requests)
        for _ in range(self.options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for setting in settings:
                    before = self._count(setting)
                    reset_peak()
                    with measure() as timing:
                        vectors[setting] = self._run(setting, requests, budget, Path(folder))
                    times[setting].append(timing)
                    peaks[setting] = max(peaks[setting], peak_bytes())
                    counts[setting] = self._count(setting) - before
        base = {s.single: times[s] for s in settings if s.pipeline == "straightforward"}
        reference = vectors[settings[0]]
        return {
            s: {
                **_rates(s, times[s], base[s.single], len(vectors[s]), counts[s]),
                # Of the whole process, with libraries, model and what the allocator keeps.
                "process_peak_mb": round(peaks[s] / 2**20, 1),
                "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)
                if torch.cuda.is_available()
                else None,
                "largest_difference": float(f"{np.abs(vectors[s] - reference[: len(vectors[s])]).max():.2g}"),
                "parameters": sum(p.numel() for p in self.policy.model.parameters()),
            }
            for s in settings
        }

    def _warm_up(self, requests: list[RationaleRequest]) -> None:
        """What comes once for a model: the engines' self-check and shared prefix."""
        straightforward(self.policy, requests[:1])
        for engine in self.engines.values():
            one_pass(engine, requests[:1])
        if self.embedder is not None:
            self.embedder.encode_document(self.texts[:1])

    def _run(self, setting: _Setting, requests: list[RationaleRequest], budget: int, folder: Path) -> Vectors:
        batches = [[request] for request in requests[: self.options.singles]] if setting.single else [requests]
        if setting.pipeline == "straightforward":
            return _unit(np.concatenate([straightforward(self.policy, batch) for batch in batches]))
        if setting.cache == "none" or self.embedder is None:
            engine = self.engines[setting.batch_tokens]
            return _unit(np.concatenate([one_pass(engine, batch) for batch in batches]))
        from grace_retrieval import open_cache

        writer = self.embedder.writer
        cache = open_cache(folder / "rationales.sqlite")
        writer.configure(max_new_tokens=budget)
        writer.cache = cache
        try:
            return np.asarray(self.embedder.encode_document(self.texts, rationale=budget > 0))
        finally:
            writer.cache = None
            if cache is not None:
                cache.close()

    def _count(self, setting: _Setting) -> Counter[str]:
        if setting.pipeline == "straightforward":
            return Counter()
        cached = setting.cache != "none" and self.embedder is not None
        engine: Any = self.embedder.pipeline.engine if cached and self.embedder else self.engines[setting.batch_tokens]
        return Counter(engine.statistics())


def _rates(setting: _Setting, times: list[Timing], base: list[Timing], texts: int, counts: Counter[str]) -> Row:
    wall = [timing.wall for timing in times]
    rates = sorted(texts / seconds for seconds in wall)
    middle = statistics.median(wall)
    ours = setting.pipeline != "straightforward"
    return {
        "encoded": texts,
        "wall_seconds": [round(seconds, 4) for seconds in wall],
        "cpu_seconds": [round(timing.cpu, 4) for timing in times],
        "texts_per_second": round(statistics.median(rates), 2),
        "texts_per_second_min": round(rates[0], 2),
        "texts_per_second_max": round(rates[-1], 2),
        "new_tokens": counts["new_tokens"] if ours else None,
        "tokens_per_second": round((counts["new_tokens"] + counts["prompt_tokens"]) / middle, 1) if ours else None,
        "ratio_wall": round(statistics.median(t.wall for t in base) / middle, 3),
        "ratio_cpu": round(statistics.median(t.cpu for t in base) / statistics.median(t.cpu for t in times), 3),
        "seconds_per_text": round(middle / texts, 5),
    }


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
