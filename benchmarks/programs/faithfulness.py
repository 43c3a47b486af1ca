"""Whether the words that contribute most to a score are those it needs: deletion curves.

    PYTHONPATH=benchmarks python -m programs.faithfulness --data ../shared/data

For pairs of a test query and a relevant document, k words of the document are deleted, the document is embedded again,
and the fall of its score is compared between ways to choose the words: those with the largest contributions, those with
the largest weights (contribution less baseline), random ones, those most frequent in the collection, and the longest
(most tokens), because a long word has a large contribution for its length alone. Once with the texts alone, and once
with rationales, which are written again for each shortened text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from grace_benchmarks.record import write_result
from grace_benchmarks.retrieval.collection import Collection, load_beir
from grace_retrieval import GraceEmbedder
from grace_retrieval.threads import hold_torch

if TYPE_CHECKING:
    from grace_retrieval import Explanation

SETS = ("nfcorpus", "cranfield")
DELETED = (1, 2, 4, 8, 16)
CHOICES = ("contribution", "weight", "random", "most frequent", "longest")
FEWEST_WORDS, MOST_WORDS = 48, 200
RESAMPLES = 5000
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "faithfulness.png"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query and a document that is relevant to it."""

    query: str
    document: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A document with words deleted: by which choice, how many, and which seed for random ones."""

    pair: int
    choice: str
    deleted: int
    text: str
    tokens: int


def pairs_of(collection: Collection, count: int, rng: np.random.Generator) -> list[Pair]:
    """One relevant document for each of `count` queries, drawn at random among those of a fitting length."""
    found: list[Pair] = []
    for place in rng.permutation(len(collection.queries)):
        query = list(collection.queries)[place]
        relevant = [
            document
            for document, grade in sorted(collection.qrels[query].items())
            if grade > 0 and FEWEST_WORDS <= len(collection.documents.get(document, "").split()) <= MOST_WORDS
        ]
        if relevant:
            document = relevant[int(rng.integers(len(relevant)))]
            found.append(Pair(query=collection.queries[query], document=collection.documents[document]))
        if len(found) == count:
            return found
    return found


def without_words(text: str, words: Sequence[re.Match[str]], places: Iterable[int]) -> str:
    """The text without some of its words, and without the blanks behind them."""
    deleted = set(places)
    ends = [word.start() for word in words[1:]] + [len(text)]
    kept = [
        text[word.start() : end]
        for place, (word, end) in enumerate(zip(words, ends, strict=True))
        if place not in deleted
    ]
    return "".join(kept).strip()


def variants_of(
    place: int, pair: Pair, explanation: Explanation, frequency: Counter[str], seeds: Sequence[int]
) -> list[Variant]:
    """The document with words deleted, for every choice and number."""
    words = list(re.finditer(r"\S+", pair.document))
    side = explanation.document
    inside = np.searchsorted([word.end() for word in words], side.spans[[part == "text" for part in side.parts], 1])
    texts = np.array([part == "text" for part in side.parts])

    def summed(values: Float64) -> Float64:
        return np.asarray(np.bincount(inside, weights=values[texts], minlength=len(words)), dtype=np.float64)

    tokens = np.bincount(inside, minlength=len(words))
    orders: list[tuple[str, npt.NDArray[np.int64]]] = [
        ("contribution", np.argsort(-summed(side.contributions), kind="stable")),
        ("weight", np.argsort(-summed(side.weights), kind="stable")),
        (
            "most frequent",
            np.argsort([-frequency[_plain(word.group())] for word in words], kind="stable"),
        ),
        ("longest", np.argsort(-tokens, kind="stable")),
    ]
    orders += [("random", np.random.default_rng([seed, place]).permutation(len(words))) for seed in seeds]
    return [
        Variant(
            pair=place,
            choice=choice,
            deleted=k,
            text=without_words(pair.document, words, order[:k].tolist()),
            tokens=int(tokens[order[:k]].sum()),
        )
        for choice, order in orders
        for k in DELETED
    ]


def interval(values: Float64, rng: np.random.Generator) -> tuple[float, float]:
    """95% bootstrap interval of a mean over pairs."""
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def measure_set(
    embedder: GraceEmbedder,
    set_name: str,
    pairs: Sequence[Pair],
    frequency: Counter[str],
    *,
    rationale: bool,
    seeds: Sequence[int],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Rows of one set, with rationales or without."""
    explanations = [embedder.explain(pair.query, pair.document, rationale=rationale) for pair in pairs]
    variants = [
        variant
        for place, (pair, explanation) in enumerate(zip(pairs, explanations, strict=True))
        for variant in variants_of(place, pair, explanation, frequency, seeds)
    ]
    queries = embedder.encode_query([pair.query for pair in pairs], rationale=rationale)
    vectors = embedder.encode_document([variant.text for variant in variants], rationale=rationale)
    falls: dict[tuple[str, int], dict[int, list[float]]] = {}
    tokens: dict[tuple[str, int], list[int]] = {}
    for variant, vector in zip(variants, vectors, strict=True):
        fall = explanations[variant.pair].score - float(queries[variant.pair] @ vector)
        falls.setdefault((variant.choice, variant.deleted), {}).setdefault(variant.pair, []).append(fall)
        tokens.setdefault((variant.choice, variant.deleted), []).append(variant.tokens)

    def fall_of(choice: str, k: int) -> Float64:
        return np.array([np.mean(falls[choice, k][place]) for place in range(len(pairs))])

    rows = []
    for choice in CHOICES:
        for k in DELETED:
            values, random = fall_of(choice, k), fall_of("random", k)
            low, high = interval(values, rng)
            more_low, more_high = interval(values - random, rng)
            rows.append(
                {
                    "set": set_name,
                    "embedded": "rationale written again" if rationale else "text only",
                    "choice": choice,
                    "deleted": k,
                    "pairs": len(pairs),
                    "mean_score": round(float(np.mean([explanation.score for explanation in explanations])), 4),
                    "fall": round(float(values.mean()), 5),
                    "fall_95": [round(low, 5), round(high, 5)],
                    "fall_more_than_random": round(float((values - random).mean()), 5),
                    "fall_more_than_random_95": [round(more_low, 5), round(more_high, 5)],
                    "tokens_deleted": round(float(np.mean(tokens[choice, k])), 2),
                }
            )
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Deletion curves, a panel for each set and way of embedding."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(row["set"] for row in rows))
    ways = list(dict.fromkeys(row["embedded"] for row in rows))
    # Okabe and Ito's colours, told apart with any kind of colour vision, and a marker each.
    looks = (("#D55E00", "o"), ("#CC79A7", "s"), ("#666666", "x"), ("#0072B2", "^"), ("#009E73", "D"))
    styles = dict(zip(CHOICES, looks, strict=True))
    figure, axes = plt.subplots(len(ways), len(sets), figsize=(9.5, 7), sharex=True, sharey="row", squeeze=False)
    for line, way in zip(axes, ways, strict=True):
        for axis, name in zip(line, sets, strict=True):
            for choice in CHOICES:
                own = [row for row in rows if (row["set"], row["embedded"], row["choice"]) == (name, way, choice)]
                color, marker = styles[choice]
                numbers = [row["deleted"] for row in own]
                axis.plot(numbers, [row["fall"] for row in own], color=color, marker=marker, label=choice)
                low, high = zip(*(row["fall_95"] for row in own), strict=True)
                axis.fill_between(numbers, low, high, color=color, alpha=0.13, linewidth=0)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_xscale("log", base=2, subs=[])
            axis.set_xticks(DELETED, [str(k) for k in DELETED])
            axis.set_title(f"{name}, {way}", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("words deleted from the document")
    for line in axes:
        line[0].set_ylabel("fall of the score (mean, 95% interval)")
    axes[0][0].legend(title="deleted first, by", fontsize=8, title_fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plain(word: str) -> str:
    return word.lower().strip(".,;:!?()[]{}\"'")


def main(
    data: Annotated[Path, typer.Option(help="Folder of the collections.")] = Path("../shared/data"),
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano",
    sets: Annotated[str, typer.Option(help="Sets, separated by commas.")] = ",".join(SETS),
    pairs: Annotated[int, typer.Option(help="Pairs of query and document in a set.")] = 40,
    random_seeds: Annotated[int, typer.Option(help="Random choices of words for each document.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of pairs, random words and resampling.")] = 0,
    cache: Annotated[str, typer.Option(help="Cache: a path, or 'default'.")] = "default",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Measure, and write the rows and the plot."""
    hold_torch(threads)
    embedder = GraceEmbedder(model, cache=cache, on_truncation="error")
    rows: list[dict[str, Any]] = []
    for place, set_name in enumerate(sets.split(",")):
        collection = load_beir(data / "retrieval" / set_name)
        rng = np.random.default_rng([seed, place])
        chosen = pairs_of(collection, pairs, rng)
        frequency = Counter(_plain(word) for text in collection.documents.values() for word in text.split())
        seeds = [seed + number for number in range(random_seeds)]
        for rationale in (False, True):
            rows += measure_set(embedder, set_name, chosen, frequency, rationale=rationale, seeds=seeds, rng=rng)
            Console(stderr=True).print(f"{set_name}, rationale={rationale}: {len(chosen)} pairs")
    write_result(
        "faithfulness",
        rows,
        model=Path(model).name,
        seed=seed,
        random_seeds=random_seeds,
        words_of_documents=[FEWEST_WORDS, MOST_WORDS],
        resamples=RESAMPLES,
        threads=threads,
    )
    plot(rows, PLOT)
    table = Table("set", "embedded", "choice", *(str(k) for k in DELETED), title="Fall of the score by words deleted")
    for set_name, way, choice in dict.fromkeys((row["set"], row["embedded"], row["choice"]) for row in rows):
        own = [row for row in rows if (row["set"], row["embedded"], row["choice"]) == (set_name, way, choice)]
        table.add_row(set_name, way, choice, *(f"{row['fall']:+.4f}" for row in own))
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
