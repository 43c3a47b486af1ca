"""The tokens that are pooled into a text's embedding, and their hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import NonFiniteEmbeddingError
from grace_retrieval.explain.explained import Part
from grace_retrieval.explain.spans import Span, decoded_spans
from grace_retrieval.rationale import Rationale, RationaleMode

if TYPE_CHECKING:
    from grace_retrieval.engine import Policy
    from grace_retrieval.pipeline import RationalePipeline
    from grace_retrieval.prompt import RationalePrompt, RenderedText
    from grace_retrieval.rows import Role

__all__ = ["PooledTokens", "pooled_tokens", "token_states"]

NO_RATIONALE = Rationale(text="", token_ids=(), truncated=False, text_truncated=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTokens:
    """The tokens that are pooled into an embedding: of the text, of the chat template behind it, of the rationale.

    Args:
        text: The text.
        rationale: The rationale.
        given: Whether the rationale is the caller's own string rather than the model's.
        input_ids: All tokens that the model is shown. Shape: (tokens,); none for a blank text.
        prefix_length: Leading tokens that are not pooled.
        strings: Characters of each pooled token. Shape: (pooled tokens,).
        parts: Where each pooled token is from.
        spans: Its characters in text or rationale; None for the template's.
        text_end: Characters of the text that the model was shown; fewer than there are if it was too long.
    """

    text: str
    rationale: Rationale
    given: bool
    input_ids: tuple[int, ...]
    prefix_length: int
    strings: tuple[str, ...]
    parts: tuple[Part, ...]
    spans: tuple[Span | None, ...]
    text_end: int

    def count(self, *parts: Part) -> int:
        """Number of pooled tokens of some parts."""
        return sum(part in parts for part in self.parts)


def pooled_tokens(
    pipeline: RationalePipeline,
    texts: Sequence[str],
    rationales: Sequence[str | Rationale | None],
    role: Role,
    system_prompt: str | None,
    *,
    rationale: RationaleMode,
) -> list[PooledTokens]:
    """Tokenise texts and find their rationales: given, cached, or else written now.

    Args:
        pipeline: Of the embedder.
        texts: Texts without lone surrogates.
        rationales: Given rationales; None for those to look up or write.
        role: What the texts are.
        system_prompt: The role's system prompt; None is the pipeline's own.
        rationale: Whether those that are not given are looked up or written at all.

    Returns:
        One PooledTokens a text.

    Raises:
        InputError: If a text is too long and `on_truncation` is "error", or a given rationale is.
    """
    rendered = pipeline.render(texts, prompt=system_prompt, given=rationales)
    missing = [i for i, shown in enumerate(rendered) if shown.text_length and shown.rationale_ids is None]
    rows = pipeline.write([rendered[i] for i in missing], role=role, prompt=system_prompt, rationale=rationale)
    written = {i: row.rationale for i, row in zip(missing, rows, strict=True)}
    prompt = pipeline.prompt(system_prompt)
    found = []
    with pipeline.tokenizer_lock:
        for i, (text, given, shown) in enumerate(zip(texts, rationales, rendered, strict=True)):
            if not shown.text_length:
                found.append(_blank(text))
            elif isinstance(given, str):
                about = replace(NO_RATIONALE, text=given, token_ids=shown.rationale_ids or ())
                spans = prompt.spans(given, rationale=True)
                found.append(_with_spans(prompt, text, shown, about, spans, given=True))
            else:
                about = given or written.get(i, NO_RATIONALE)
                decoded, spans = decoded_spans(pipeline.tokenizer, about.token_ids)
                about = replace(about, text=decoded)
                found.append(_with_spans(prompt, text, shown, about, spans, given=False))
    return found


def _blank(text: str) -> PooledTokens:
    return PooledTokens(
        text=text,
        rationale=NO_RATIONALE,
        given=False,
        input_ids=(),
        prefix_length=0,
        strings=(),
        parts=(),
        spans=(),
        text_end=len(text),
    )


def _with_spans(
    prompt: RationalePrompt,
    text: str,
    shown: RenderedText,
    rationale: Rationale,
    rationale_spans: Sequence[Span],
    *,
    given: bool,
) -> PooledTokens:
    """Put the tokens of a text, of the template and of a rationale in a row, with what they stand for."""
    all_spans, length = prompt.spans(text), shown.text_length
    spans = all_spans[:length]
    cut = length < len(all_spans)
    counts: dict[Part, int] = {"text": length, "template": len(prompt.suffix_ids), "rationale": len(rationale_spans)}
    parts = tuple(part for part, count in counts.items() for _ in range(count))
    template = tuple(str(prompt.tokenizer.decode([token])) for token in prompt.suffix_ids)
    return PooledTokens(
        text=text,
        rationale=replace(rationale, text_truncated=cut),
        given=given,
        input_ids=shown.input_ids + rationale.token_ids,
        prefix_length=shown.prefix_length,
        strings=(
            *(text[start:end] for start, end in spans),
            *template,
            *(rationale.text[start:end] for start, end in rationale_spans),
        ),
        parts=parts,
        spans=(*spans, *(None for _ in template), *rationale_spans),
        text_end=spans[-1][1] if cut else len(text),
    )


def token_states(policy: Policy, tokens: Sequence[PooledTokens]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Run the policy once over each text with its rationale; nothing is generated. In any order.

    Args:
        policy: Gives the states.
        tokens: From `pooled_tokens`.

    Yields:
        Place of a text, and the last hidden states of its pooled tokens. Shape: (pooled tokens, hidden), float32.

    Raises:
        NonFiniteEmbeddingError: If the model gives NaN or infinity.
    """
    shown = [place for place, item in enumerate(tokens) if item.input_ids]
    for index, found in policy.states([tokens[place].input_ids for place in shown]):
        place = shown[index]
        states = found[tokens[place].prefix_length :]
        if not np.isfinite(states).all():
            raise NonFiniteEmbeddingError(
                f"The model gave NaN or infinity in {policy.dtype} for a text of {len(tokens[place].input_ids)} "
                "tokens. Load it in float32 to have the text explained: model_kwargs={'dtype': 'float32'}."
            )
        yield place, states
    for place in sorted(set(range(len(tokens))).difference(shown)):
        yield place, np.zeros((0, policy.hidden_size), dtype=np.float32)
