"""Reading of the data sets, the check for leaks, and plain texts for the language modelling phase."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from grace_nano.cleaning import clean_textbook, detokenize, normalize_spaces, split_sentences
from grace_nano.recipe import Recipe

__all__ = ["drop_leaks", "lm_texts", "read_arxiv", "read_pairs", "title_key", "tokenizer_texts"]

_BOILERPLATE = ("These resources address", "The Human Phenotype Ontology")
_BOOK_PIECE = 3600


def title_key(title: str) -> str:
    """Reduce a title to lower-case letters and digits, so that spelling variants compare equal.

    Example:
        >>> title_key("Fast-HaMeR:  Hands")
        'fasthamerhands'
    """
    return re.sub(r"[^a-z0-9]", "", title.lower())


def drop_leaks(train: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """Drop rows of `train` whose arXiv id (any version) or title also occurs in `held_out`.

    Args:
        train: Rows with columns `id` and `title`.
        held_out: Rows that must stay unseen, same columns.

    Returns:
        The remaining rows, index renewed.
    """

    def bare(ids: pd.Series) -> pd.Series:
        return ids.astype(str).str.replace(r"v\d+$", "", regex=True)

    leaked = bare(train["id"]).isin(set(bare(held_out["id"])))
    leaked |= train["title"].map(title_key).isin(set(held_out["title"].map(title_key)))
    return train[~leaked].reset_index(drop=True)


def read_arxiv(data: Path, split: str) -> pd.DataFrame:
    """Read the papers of a split; for `train` the leaks into dev and test are dropped."""
    if split != "train":
        return pd.read_parquet(data / "arxiv" / f"{split}.parquet")
    train = pd.concat([pd.read_parquet(path) for path in sorted((data / "arxiv").glob("train-*.parquet"))])
    held_out = pd.concat([read_arxiv(data, "dev"), read_arxiv(data, "test")])
    return drop_leaks(train.drop_duplicates("id"), held_out)


def read_pairs(data: Path, name: str) -> pd.DataFrame:
    """Read `medquad`, `nq` or `openstax_glossary`; answers that only list resources are dropped."""
    frame = pd.read_parquet(data / "pairs" / f"{name}.parquet").fillna("")
    if name == "medquad":
        frame["positive"] = frame["positive"].map(normalize_spaces).map(_without_first_question)
        frame = frame[~frame["positive"].str.startswith(_BOILERPLATE) & (frame["positive"].str.len() > 60)]
    if name == "nq":
        frame["positive"] = frame["positive"].map(detokenize)
    return frame.reset_index(drop=True)


def _without_first_question(answer: str) -> str:
    """Drop the heading of an answer that repeats the question."""
    sentences = split_sentences(answer)
    if len(sentences) > 1 and sentences[0].endswith("?"):
        return " ".join(sentences[1:])
    return answer


def tokenizer_texts(recipe: Recipe) -> Iterator[str]:
    """Yield the texts on which the tokenizer is trained; only training data."""
    papers = read_arxiv(recipe.data, "train")
    for row in papers.sample(recipe.tokenizer["arxiv_papers"], random_state=recipe.seed).itertuples():
        yield f"{row.title}\n\n{row.abstract}"
        yield from (str(row.tldr), str(row.motivation), str(row.method))
    for text in pd.read_parquet(recipe.data / "text" / "openstax_sections.parquet")["text"]:
        yield clean_textbook(text)[:6000]
    answers = read_pairs(recipe.data, "medquad")
    for row in answers.sample(recipe.tokenizer["medquad_answers"], random_state=recipe.seed).itertuples():
        yield f"{row.query} {str(row.positive)[:1200]}"
    for row in read_pairs(recipe.data, "nq").itertuples():
        yield f"{row.query}\n{row.positive}"
    for text in pd.read_parquet(recipe.data / "text" / "public_domain_books.parquet")["text"]:
        yield text[10000 : 10000 + recipe.tokenizer["book_characters"]]


def lm_texts(recipe: Recipe, name: str) -> Iterator[str]:
    """Yield the plain texts of one source of the language modelling phase.

    Args:
        recipe: The recipe.
        name: `lm_arxiv`, `lm_openstax`, `lm_medquad`, `lm_nq` or `lm_books`.

    Raises:
        ValueError: The source is unknown.
    """
    rng = np.random.default_rng([recipe.seed, *name.encode()])
    if name == "lm_arxiv":
        for row in read_arxiv(recipe.data, "train").itertuples():
            explained = f"\n\n{normalize_spaces(str(row.tldr))}" if rng.random() < 0.2 else ""
            yield f"{row.title}\n\n{normalize_spaces(str(row.abstract))}{explained}"
    elif name == "lm_openstax":
        for text in pd.read_parquet(recipe.data / "text" / "openstax_sections.parquet")["text"]:
            yield from _pieces(clean_textbook(text), rng)
    elif name == "lm_medquad":
        for row in read_pairs(recipe.data, "medquad").itertuples():
            yield from _pieces(f"{normalize_spaces(str(row.query))}\n\n{row.positive}", rng)
    elif name == "lm_nq":
        for row in read_pairs(recipe.data, "nq").itertuples():
            yield f"{row.query}\n\n{row.title}: {row.positive}"
    elif name == "lm_books":
        for text in pd.read_parquet(recipe.data / "text" / "public_domain_books.parquet")["text"]:
            yield from _pieces(text[10000:], rng)
    else:
        raise ValueError(f"unknown source {name!r}")


def _pieces(text: str, rng: np.random.Generator) -> Iterator[str]:
    """Cut a long text at spaces; a quarter of the pieces is long, for the long rows."""
    start = 0
    while start < len(text):
        size = _BOOK_PIECE if rng.random() < 0.25 else _BOOK_PIECE // 2
        end = start + size
        if end < len(text):
            space = text.rfind(" ", start + size // 2, end)
            end = space if space > 0 else end
        piece = text[start:end].strip()
        if len(piece) > 80:
            yield piece
        start = end
