"""From a query and documents to Explanations: one forward pass over cached tokens, then arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError
from grace_retrieval.explain.contributions import (
    Decomposition,
    cosine,
    decompose,
    largest_products,
    mean_state,
    nearest_products,
)
from grace_retrieval.explain.documents import EmbeddedDocument, read_documents
from grace_retrieval.explain.explained import LeftOut, Part, Partner, Side, TokenPair, Word
from grace_retrieval.explain.explanation import Explanation
from grace_retrieval.explain.spans import is_word, word_groups
from grace_retrieval.explain.states import PooledTokens, pooled_tokens, token_states
from grace_retrieval.prompt import check_texts, without_surrogates
from grace_retrieval.rationale import Rationale, RationaleMode
from grace_retrieval.rows import Role

if TYPE_CHECKING:
    from grace_retrieval.centring import Centring
    from grace_retrieval.pipeline import RationalePipeline

__all__ = ["explain"]

PAIRS = 20
PARTNERS = 5

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def explain(
    pipeline: RationalePipeline,
    query: str,
    documents: Any,
    *,
    dimension: int,
    prompts: Mapping[str, str | None],
    centring: Centring | None = None,
    query_rationale: str | Rationale | None = None,
    document_rationales: Sequence[str | Rationale | None] | str | Rationale | None = None,
    rationale: RationaleMode | None = None,
) -> Explanation | list[Explanation]:
    """Explain the scores of documents for a query.

    Args:
        pipeline: Of the embedder that gave them.
        query: See `GraceEmbedder.explain`, as for all that is not listed here.
        documents: See there.
        dimension: Number of dimensions of the embeddings.
        prompts: System prompts of the roles.
        centring: What is taken away from all vectors.
        query_rationale: See there.
        document_rationales: See there.
        rationale: See there.
    """
    check_texts([query], what="query")
    found, single = read_documents(documents)
    rationale = pipeline.options.rationale if rationale is None else rationale
    given = _given_rationales(found, document_rationales, rationale=rationale)
    if query_rationale is not None and not rationale:
        raise _unused_rationale("query_rationale")
    own = without_surrogates(query_rationale) if isinstance(query_rationale, str) else query_rationale
    (query_tokens,) = pooled_tokens(
        pipeline, [without_surrogates(query)], [own], "query", prompts.get("query"), rationale=rationale
    )
    texts = [without_surrogates(document.text) for document in found]
    tokens = pooled_tokens(pipeline, texts, given, "document", prompts.get("document"), rationale=rationale)
    ((_, states),) = token_states(pipeline.policy, [query_tokens])
    query_side = _pooled(query_tokens, states, "query", centring, dimension)
    scored: dict[int, _Scored] = {}
    for place, states in token_states(pipeline.policy, tokens):
        scored[place] = _score(query_side, _pooled(tokens[place], states, "document", centring, dimension))
    scores = np.array([scored[place].scores for place in range(len(found))]).reshape(-1, 4)
    explanations = [
        Explanation(
            model=pipeline.name,
            dimension=dimension,
            score=scored[place].scores[0],
            query=scored[place].query,
            document=scored[place].document,
            pairs=scored[place].pairs,
            id=document.id,
            title=document.title,
            rank=_rank(scores[:, 0], place),
            documents=len(found),
            without_document_rationale=LeftOut(
                score=float(scores[place, 1]), rank=_rank(scores[:, 0], place, instead=scores[place, 1])
            ),
            without_query_rationale=LeftOut(score=float(scores[place, 2]), rank=_rank(scores[:, 2], place)),
            without_rationales=LeftOut(score=float(scores[place, 3]), rank=_rank(scores[:, 3], place)),
        )
        for place, document in enumerate(found)
    ]
    return explanations[0] if single else explanations


def _given_rationales(
    documents: Sequence[EmbeddedDocument],
    given: Sequence[str | Rationale | None] | str | Rationale | None,
    *,
    rationale: RationaleMode,
) -> list[str | Rationale | None]:
    """Rationales of the documents: those of the call, or else those that came with the documents."""
    if given is None:
        return [document.rationale if rationale else None for document in documents]
    if not rationale:
        raise _unused_rationale("document_rationales")
    own = [given] if isinstance(given, (str, Rationale)) else list(given)
    if len(own) != len(documents):
        raise InputError(
            f"{len(own)} document_rationales for {len(documents)} documents: give one each (None: look up)."
        )
    check_texts(
        [item.text if isinstance(item, Rationale) else item for item in own if item is not None],
        what="document rationale",
    )
    return [without_surrogates(item) if isinstance(item, str) else item for item in own]


def _unused_rationale(name: str) -> InputError:
    return InputError(
        f"{name} is given, but rationale=False (or the model's setting) embeds texts alone: give one only."
    )


def _pooled(tokens: PooledTokens, states: Float32, role: Role, centring: Centring | None, dimension: int) -> _Pooled:
    """A side, from the policy's states of its tokens. Shape of these: (tokens, hidden)."""
    # With causal attention the states of the text are the same whether a rationale follows or not.
    text = states[: tokens.count("text", "template")]
    if centring is not None:
        states, text = centring.of_states(states, role), centring.of_states(text, role)
    return _Pooled(tokens, states[:, :dimension], text[:, :dimension])


class _Pooled:
    """A side of a comparison with its states, and what every comparison needs of them.

    Args:
        tokens: The pooled tokens.
        states: Their states. Shape: (tokens, dim), float32.
        text_states: Those of the text without its rationale. Shape: (tokens of the text, dim), float32.
    """

    def __init__(self, tokens: PooledTokens, states: Float32, text_states: Float32) -> None:
        self.tokens = tokens
        self.states = states
        self.mean = mean_state(states)
        self.mean_of_text = mean_state(text_states)
        self.centred = states - self.mean
        self.words = _words(tokens)
        self.named = [
            place
            for place, word in enumerate(self.words)
            if is_word((tokens.text if word.part == "text" else tokens.rationale.text)[word.start : word.end])
        ]
        named = [self.words[place] for place in self.named]
        self.named_tokens = np.array(
            [token for word in named for token in range(word.first, word.stop)], dtype=np.int64
        )
        self.word_sums = np.zeros((len(named), states.shape[1]))
        for row, word in enumerate(named):
            self.word_sums[row] = self.centred[word.first : word.stop].sum(0)

    def side(self, contributions: Float64, weights: Float64, partners: dict[int, tuple[Partner, ...]]) -> Side:
        """The side as users see it."""
        tokens = self.tokens
        return Side(
            text=tokens.text,
            text_end=tokens.text_end,
            rationale=tokens.rationale,
            written_by_model=not tokens.given,
            tokens=tokens.strings,
            parts=tokens.parts,
            spans=np.array([span or (-1, -1) for span in tokens.spans], dtype=np.int64).reshape(-1, 2),
            contributions=contributions,
            weights=weights,
            words=tuple(
                replace(
                    word,
                    contribution=float(contributions[word.first : word.stop].sum()),
                    weight=float(weights[word.first : word.stop].sum()),
                    partners=partners.get(place, ()),
                )
                for place, word in enumerate(self.words)
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """A comparison without its ranks. `scores`: as embedded, without the document's, the query's, either rationale."""

    scores: tuple[float, float, float, float]
    query: Side
    document: Side
    pairs: tuple[TokenPair, ...]


def _score(query: _Pooled, document: _Pooled) -> _Scored:
    parts = decompose(query.states, document.states)
    return _Scored(
        scores=(
            parts.score,
            cosine(query.mean, document.mean_of_text),
            cosine(query.mean_of_text, document.mean),
            cosine(query.mean_of_text, document.mean_of_text),
        ),
        query=query.side(parts.query, parts.query_weights, _partners(query, document, parts.pair_scale)),
        document=document.side(parts.document, parts.document_weights, _partners(document, query, parts.pair_scale)),
        pairs=_pairs(query, document, parts),
    )


def _partners(side: _Pooled, other: _Pooled, scale: float) -> dict[int, tuple[Partner, ...]]:
    """Words of the other side that each word agrees with most."""
    places, products = nearest_products(side.word_sums, other.word_sums, PARTNERS)
    return {
        side.named[row]: tuple(
            Partner(word=other.named[place], weight=float(product * scale))
            for place, product in zip(places[row].tolist(), products[row].tolist(), strict=True)
            if product > 0
        )
        for row in range(len(side.named))
    }


def _pairs(query: _Pooled, document: _Pooled, parts: Decomposition) -> tuple[TokenPair, ...]:
    """Pairs of tokens that stand out most."""
    rows, columns, products = largest_products(
        query.centred[query.named_tokens], document.centred[document.named_tokens], PAIRS
    )
    rows, columns = query.named_tokens[rows], document.named_tokens[columns]
    whole = np.einsum("pd,pd->p", query.states[rows].astype(np.float64), document.states[columns].astype(np.float64))
    return tuple(
        TokenPair(
            query=int(row),
            document=int(column),
            contribution=float(dot * parts.pair_scale),
            weight=float(product * parts.pair_scale),
        )
        for row, column, dot, product in zip(rows, columns, whole, products, strict=True)
    )


def _words(tokens: PooledTokens) -> list[Word]:
    """The words of text and rationale, without their contributions."""
    words: list[Word] = []
    behind = tokens.count("text", "template")
    parts: tuple[tuple[Part, str, int, int], ...] = (
        ("text", tokens.text, 0, tokens.count("text")),
        ("rationale", tokens.rationale.text, behind, len(tokens.parts)),
    )
    for part, text, offset, last in parts:
        spans = [span for span in tokens.spans[offset:last] if span is not None]
        for first, stop in word_groups(text, spans):
            start, end = min(span[0] for span in spans[first:stop]), max(span[1] for span in spans[first:stop])
            characters = text[start:end]
            if characters.strip():  # tokens begin with the space before their word
                start += len(characters) - len(characters.lstrip())
                end -= len(characters) - len(characters.rstrip())
            words.append(
                Word(
                    part=part,
                    start=start,
                    end=end,
                    first=offset + first,
                    stop=offset + stop,
                    contribution=0.0,
                    weight=0.0,
                )
            )
    return words


def _rank(scores: Float64, place: int, *, instead: float | None = None) -> int:
    """Rank of a score among the others, from 1. `instead` takes the place of the document's own."""
    own = scores[place] if instead is None else instead
    return 1 + int((np.delete(scores, place) > own).sum())
