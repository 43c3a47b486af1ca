"""`grace bench encode`: throughput of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grace_benchmarks.cli.options import NewRows, OutOption, QuietOption, RunOption, ThreadsOption
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cli.options import DeviceOption
from grace_retrieval.errors import InputError

__all__ = ["encode"]


def encode(
    model: Annotated[
        str, typer.Option("--model", help="Name or folder; random is a random policy of 50M parameters.")
    ] = DEFAULT_MODEL,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Number of texts.")] = 64,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder in BEIR layout with texts.", show_default="the bundled passages"),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", help="Most tokens of a rationale, with commas; 0 is none.")
    ] = "0,16,64,256",
    batch_tokens: Annotated[
        str | None,
        typer.Option("--batch-tokens", help="Most tokens of a batch, with commas.", show_default="the engine's choice"),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of everything, in turns.")] = 3,
    singles: Annotated[int, typer.Option("--singles", min=1, help="Texts that also run one at a time.")] = 8,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random policy.")] = 0,
    out: OutOption = Path("bench-results"),
    run: RunOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Measure texts and tokens per second, and the ratio to stock generation with a second pass."""
    from grace_benchmarks.running import run_encode_part
    from grace_benchmarks.suites import EncodePart

    part = EncodePart(
        model=model,
        texts=texts,
        budgets=_numbers(budgets, "--budgets"),
        batch_tokens=(None, *(_numbers(batch_tokens, "--batch-tokens") if batch_tokens else ())),
        repeats=repeats,
        singles=singles,
        threads=threads or 1,
        seed=seed,
        data=data,
    )
    rows_said = NewRows(quiet=quiet)
    finished = run_encode_part(part, out, device=device, run=run, say=rows_said)
    rows_said.said(finished, out / "encode.jsonl")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise InputError(f"{option} {text!r}: give whole numbers with commas between them.")
    return tuple(map(int, parts))
