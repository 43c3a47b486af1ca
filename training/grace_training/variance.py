"""`python -m grace_training.variance`: do the negatives of a reward tell rollouts of one document apart?

The advantage of a rollout is its reward less its group's mean, so a term counts only by its variance within groups.
This writes rationales about real documents and prints that variance for every term of both presets, from the same
rollouts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from grace_retrieval import GraceEmbedder
from grace_training.advantages import variance_within_groups
from grace_training.data import load_examples
from grace_training.rewards import composite_reward
from grace_training.rollouts import PolicyWriter, Role, Rollout

__all__ = ["measure_variance"]

TERMS = ("contrastive", "consistency", "hard_negative", "total")


def measure_variance(
    embedder: GraceEmbedder, pairs: list[dict[str, str]], *, num_generations: int, max_new_tokens: int, seed: int
) -> dict[str, dict[str, float]]:
    """Variance within groups of every term of both presets, on one batch.

    Args:
        embedder: Its policy writes.
        pairs: Rows with query and positive; the negative of each is the positive of the next.
        num_generations: Rollouts of a document.
        max_new_tokens: Most tokens of a rationale.
        seed: Seed of the rollouts.

    Returns:
        Preset → term → variance.
    """
    writer = PolicyWriter(embedder, max_new_tokens)
    texts = [pair["positive"] for pair in pairs]

    def write(texts: list[str], role: Role, temperature: float, samples: list[int]) -> list[Rollout]:
        return writer.write(writer.render(texts, role), temperature=temperature, seed=seed, samples=samples)

    repeated = [text for text in texts for _ in range(num_generations)]
    rollouts = write(repeated, "document", 1.0, list(range(num_generations)) * len(texts))
    other = [num_generations] * len(texts)
    documents = write(texts, "document", 0.5, other)
    queries = write([pair["query"] for pair in pairs], "query", 0.5, other)
    negatives = documents[1:] + documents[:1]
    vectors = _stack(rollouts).view(len(pairs), num_generations, -1)
    found = {}
    for preset in ("paper", "grace"):
        rewards: Any = composite_reward(_stack(queries), vectors, _stack(negatives), preset=preset)
        found[preset] = {name: float(variance_within_groups(getattr(rewards, name))) for name in TERMS}
    return found


def _stack(rollouts: list[Rollout]) -> torch.Tensor:
    return torch.from_numpy(np.stack([rollout.vector for rollout in rollouts]))


def main(
    data: Annotated[Path, typer.Option(help="Pairs: .jsonl, .csv or .parquet.")],
    query: Annotated[str, typer.Option(help="Column of the queries.")] = "query",
    positive: Annotated[str, typer.Option(help="Column of the documents.")] = "positive",
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano-base",
    batches: Annotated[int, typer.Option(min=1, help="Batches, each with a seed of its own.")] = 4,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs of a batch.")] = 16,
    num_generations: Annotated[int, typer.Option(min=2, help="Rollouts of a document.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a rationale.")] = 128,
    max_seq_length: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.")] = 320,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure and print the table."""
    embedder = GraceEmbedder(model, cache=None, on_truncation="ignore", max_seq_length=max_seq_length)
    rows = []
    for seed in range(batches):
        pairs = load_examples(data, columns={"query": query, "positive": positive}, limit=batch_size, seed=seed)
        rows.append(
            measure_variance(
                embedder,
                pairs.to_list(),
                num_generations=num_generations,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
        )
        typer.echo(json.dumps({"seed": seed, **rows[-1]}), err=True)
    typer.echo("| variance within groups, mean (spread over batches) | paper | grace |\n|---|---:|---:|")
    for term in TERMS:
        cells = []
        for preset in ("paper", "grace"):
            values = [row[preset][term] for row in rows]
            cells.append(f"{np.mean(values):.2e} ({min(values):.1e} to {max(values):.1e})")
        typer.echo(f"| {term} | {' | '.join(cells)} |")
    if out is not None:
        settings = {"data": data.name, "batch_size": batch_size, "num_generations": num_generations}
        out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
