"""Chat examples: which text is shown under which role, and what its rationale is made of.

Every builder turns rows of one data set into `ChatExample`s. The wording varies a little and copies words of
the text wherever it can, because the hidden states of the rationale become part of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from grace_nano.cleaning import clean_textbook, first_sentences, normalize_spaces, split_sentences
from grace_nano.rationale import ChatExample, RationaleParts, copied_share
from grace_nano.recipe import Recipe
from grace_nano.sources import read_arxiv, read_pairs

__all__ = ["chat_examples", "document_view", "query_view"]

_GROUNDED = 0.4
"""Least share of the words of a query's rationale that the query itself must hold: little is invented then."""

_Builder = Callable[[Recipe, np.random.Generator], Iterator[ChatExample]]

_QTYPE_PHRASES = {
    "information": "what it is",
    "susceptibility": "who gets it",
    "considerations": "what to keep in mind",
    "frequency": "how many people are affected",
    "inheritance": "how it is inherited",
}
_STATEMENT_OPENINGS = (
    "this paper",
    "the paper",
    "we ",
    "this work",
    "the authors",
    "this study",
    "proposes",
    "introduces",
)


def chat_examples(recipe: Recipe, name: str) -> Iterator[ChatExample]:
    """Yield the chat examples of one source.

    Args:
        recipe: The recipe.
        name: A source of the chat phase, or `dev_chat`.

    Raises:
        ValueError: The source is unknown.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown source {name!r}; known: {', '.join(sorted(_BUILDERS))}")
    rng = np.random.default_rng([recipe.seed, *name.encode()])
    yield from _BUILDERS[name](recipe, rng)


def document_view(title: str, abstract: str, rng: np.random.Generator) -> str:
    """Choose how much of a paper is shown: mostly all of the abstract, else with title or a part."""
    abstract = normalize_spaces(abstract)
    sentences = split_sentences(abstract)
    choice = rng.random()
    if choice < 0.45 or len(sentences) < 4:
        return abstract
    if choice < 0.68:
        return f"{title}\n\n{abstract}"
    if choice < 0.85:
        return " ".join(sentences[: len(sentences) - int(rng.integers(1, len(sentences) // 2 + 1))])
    size = int(rng.integers(1, 4))
    start = int(rng.integers(0, len(sentences) - size + 1))
    return " ".join(sentences[start : start + size])


def query_view(title: str, tldr: str, rng: np.random.Generator) -> str:
    """Make a search query of a paper: its title, a part of it, or the first words of its summary."""
    choice = rng.random()
    text = title
    if choice > 0.85:
        text = title.rsplit(":", 1)[-1].strip()
    elif choice > 0.65:
        words = tldr.rstrip(".").split()
        text = " ".join(words[: int(rng.integers(5, 13))])
        lowered = text.lower()
        for opening in _STATEMENT_OPENINGS:
            if lowered.startswith(opening):
                text = " ".join(text.split()[len(opening.split()) :])
                break
    if len(text) < 12:
        text = title
    return text.lower() if rng.random() < 0.3 else text


def _role(role: str, recipe: Recipe, rng: np.random.Generator) -> str:
    return "default" if rng.random() < recipe.default_prompt_share else role


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence(text: str, max_words: int, max_sentences: int = 2) -> str | None:
    """First sentences as a statement; a long first sentence alone is left out."""
    return first_sentences(normalize_spaces(text), max_words, max_sentences)


def _start(text: str, max_words: int, rng: np.random.Generator) -> str:
    """Whole sentences from the start of a text, up to a random part of `max_words`."""
    limit = int(max_words * rng.uniform(0.3, 1.0))
    taken: list[str] = []
    words = 0
    for sentence in split_sentences(text):
        words += len(sentence.split())
        if taken and words > limit:
            break
        taken.append(sentence)
    return " ".join(taken)


def _arxiv_documents(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    papers = read_arxiv(recipe.data, "train").sample(recipe.arxiv_documents, random_state=recipe.seed + 1)
    for row in papers.itertuples():
        text = document_view(str(row.title), str(row.abstract), rng)
        parts = RationaleParts((str(row.motivation), str(row.method)), str(row.tldr))
        yield ChatExample(_role("document", recipe, rng), text, parts)


def _dev_documents(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in read_arxiv(recipe.data, "dev").itertuples():
        parts = RationaleParts((str(row.motivation), str(row.method)), str(row.tldr))
        yield ChatExample("document", normalize_spaces(str(row.abstract)), parts)


def _arxiv_queries(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    papers = read_arxiv(recipe.data, "train")
    for row in papers.sample(recipe.arxiv_queries, random_state=recipe.seed).itertuples():
        text = query_view(str(row.title), normalize_spaces(str(row.tldr)), rng)
        statement = _sentence(str(row.tldr), 32, 1)
        if statement is None or copied_share(statement, text) < _GROUNDED:
            continue
        thoughts: tuple[str, ...] = ()
        if copied_share(str(row.motivation), text) >= _GROUNDED:
            thoughts = (str(row.motivation),)
        if not thoughts or rng.random() < 0.6:  # repeat the query first: this keeps the rationale on its topic
            asks = _pick(rng, ("The query is about {}.", "The searcher wants to know about {}."))
            thoughts = (asks.format(text.rstrip("?!. ")), *thoughts)
        yield ChatExample(_role("query", recipe, rng), text, RationaleParts(thoughts, statement))


def _asked(qtype: str, focus: str) -> str:
    return f"{_QTYPE_PHRASES[qtype]}: {focus}" if qtype in _QTYPE_PHRASES else f"the {qtype} of {focus}"


def _medquad_documents(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in read_pairs(recipe.data, "medquad").itertuples():
        statement = _sentence(str(row.positive), 45)
        if statement is None:
            continue
        about = _pick(rng, ("The passage is about {}.", "The document is about {}.", "The text explains {}."))
        tells = _pick(rng, ("It tells {}.", "It answers a question on {}.", "A reader learns {}."))
        thoughts: tuple[str, ...] = (about.format(row.focus),)
        if rng.random() < 0.5:
            thoughts = (*thoughts, tells.format(_asked(str(row.qtype), str(row.focus))))
        text = _start(str(row.positive), 320, rng)
        if len(text.split()) < 8:
            continue
        yield ChatExample(_role("document", recipe, rng), text, RationaleParts(thoughts, statement))


def _medquad_queries(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in read_pairs(recipe.data, "medquad").itertuples():
        statement = _sentence(str(row.positive), 40, 1)
        if statement is None:
            continue
        query = normalize_spaces(str(row.query)).rstrip(" ?") + "?"
        choice = rng.random()
        if choice < 0.25:
            query = query.lower().rstrip("?")
        elif choice < 0.45:
            query = str(row.focus) if row.qtype == "information" else f"{row.focus} {row.qtype}"
        if copied_share(str(row.focus), statement) < 0.5:
            continue
        asks = _pick(rng, ("The question asks about {}.", "The searcher wants to know about {}."))
        wanted = str(row.focus) if row.qtype == "information" else f"the {row.qtype} of {row.focus}"
        parts = RationaleParts((asks.format(wanted),), statement)
        yield ChatExample(_role("query", recipe, rng), query, parts)


def _natural_questions(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in read_pairs(recipe.data, "nq").itertuples():
        statement = _sentence(str(row.positive), 45, 1)
        if statement is None:
            continue
        asks = _pick(rng, ("The question is about {}.", "The searcher wants to know about {}."))
        query, title = str(row.query), str(row.title)
        is_grounded = copied_share(query, statement) >= 0.6
        answer = statement if is_grounded else f"A text on {title} tells {query}."
        about = title if copied_share(title, query) >= 0.5 else query
        yield ChatExample(_role("query", recipe, rng), query, RationaleParts((asks.format(about),), answer))
        text = _start(str(row.positive), 250, rng)
        thoughts: tuple[str, ...] = (f"The passage is about {title}.",)
        if copied_share(query, text) >= 0.6:
            thoughts = (*thoughts, f"It answers the question {query}.")
        yield ChatExample(_role("document", recipe, rng), text, RationaleParts(thoughts, statement))


def _openstax(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in pd.read_parquet(recipe.data / "text" / "openstax_sections.parquet").fillna("").itertuples():
        body = clean_textbook(str(row.text))
        title = str(row.title).rstrip("?!. ")
        statement = _sentence(str(row.summary), 50)
        if statement is not None and body:
            thoughts = (f"The passage is about {title}.",)
            text = _start(normalize_spaces(body), 400, rng)
            yield ChatExample(_role("document", recipe, rng), text, RationaleParts(thoughts, statement))
        paragraphs = [part for part in body.split("\n\n") if 50 <= len(part.split()) <= 250]
        for paragraph in paragraphs:
            first = _sentence(paragraph, 40, 1)
            if first is None or copied_share(title, paragraph) < 0.5:
                continue
            thoughts = (f"The passage is about {title}.",)
            yield ChatExample(_role("document", recipe, rng), paragraph, RationaleParts(thoughts, first))


def _glossary(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    for row in read_pairs(recipe.data, "openstax_glossary").itertuples():
        term, definition = str(row.term), normalize_spaces(str(row.definition)).rstrip(".")
        if not 3 <= len(definition.split()) <= 50:
            continue
        statement = f"{term[:1].upper()}{term[1:]}: {definition}."
        query = term if rng.random() < 0.6 else f"what is {term}"
        belongs = f"The term {term} belongs to {str(row.section).rstrip('?!. ')}."
        yield ChatExample(_role("query", recipe, rng), query, RationaleParts((belongs,), statement))
        thoughts = (f"The text defines {term}.", belongs)
        yield ChatExample(_role("document", recipe, rng), definition + ".", RationaleParts(thoughts, statement))


def _short_texts(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    folder = recipe.data / "sts_classification"
    for row in pd.read_json(folder / "stsb" / "train.jsonl", lines=True).itertuples():
        first, second = normalize_spaces(str(row.s1)), normalize_spaces(str(row.s2))
        said = second if float(str(row.score)) >= 4.0 else first
        says = _pick(rng, ("The text says that {}", "The sentence states that {}"))
        lowered = first[:1].lower() + first[1:] if first[1:2].islower() or first[1:2] == " " else first
        role = "default" if rng.random() < 0.6 else "document"
        yield ChatExample(role, first, RationaleParts((says.format(lowered),), said))
    for row in pd.read_json(folder / "banking77" / "train.jsonl", lines=True).itertuples():
        intent = str(row.label).replace("_", " ")
        if copied_share(intent, str(row.text)) < 0.5:
            continue
        parts = RationaleParts((f"The customer asks about {intent}.",), f"A question about {intent}.")
        role = "default" if rng.random() < 0.5 else _role("query", recipe, rng)
        yield ChatExample(role, normalize_spaces(str(row.text)), parts)


def _echoes(recipe: Recipe, rng: np.random.Generator) -> Iterator[ChatExample]:
    """One or two sentences from anywhere in a text, repeated as the statement: practice in copying."""
    papers = read_arxiv(recipe.data, "train").sample(12000, random_state=recipe.seed + 2)
    topics = [(str(row.title), normalize_spaces(str(row.abstract))) for row in papers.itertuples()]
    answers = read_pairs(recipe.data, "medquad").sample(6000, random_state=recipe.seed)
    topics += [(str(row.focus), str(row.positive)) for row in answers.itertuples()]
    sections = pd.read_parquet(recipe.data / "text" / "openstax_sections.parquet").fillna("")
    for row in sections.itertuples():
        parts = [part for part in clean_textbook(str(row.text)).split("\n\n") if len(part.split()) > 30]
        topics += [(str(row.title), part) for part in parts[:8]]
    for index in rng.permutation(len(topics)):
        topic, body = topics[index]
        sentences = [one for one in split_sentences(body) if 7 <= len(one.split()) <= 40]
        if not sentences:
            continue
        text = sentences[int(rng.integers(len(sentences)))]
        if copied_share(topic, text) < 0.5:
            continue
        says = _pick(rng, ("The text is about {}.", "The passage is about {}."))
        role = "default" if rng.random() < 0.5 else "document"
        yield ChatExample(role, text, RationaleParts((says.format(topic.rstrip("?!. ")),), text))


_BUILDERS: dict[str, _Builder] = {
    "chat_arxiv_document": _arxiv_documents,
    "chat_arxiv_query": _arxiv_queries,
    "chat_echo": _echoes,
    "chat_glossary": _glossary,
    "chat_medquad_document": _medquad_documents,
    "chat_medquad_query": _medquad_queries,
    "chat_nq": _natural_questions,
    "chat_openstax": _openstax,
    "chat_short": _short_texts,
    "dev_chat": _dev_documents,
}
