"""The tokens that are pooled into a text's embedding, and their hidden states."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from grace_retrieval.engines.transformers import longest_batched
from grace_retrieval.errors import NonFiniteEmbeddingError
from grace_retrieval.explain.explanation import Part
from grace_retrieval.explain.spans import Span, decoded_spans
from grace_retrieval.features import pad_rows, read_requests
from grace_retrieval.rationale import Rationale

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder, Role
    from grace_retrieval.engine import RationaleRequest
    from grace_retrieval.prompt import RationalePrompt

__all__ = ["PooledTokens", "pooled_tokens", "token_states"]

BATCH_TOKENS = 2048
"""Most tokens of a forward pass, or the embedder's `max_batch_tokens` if that is less."""

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
    embedder: GraceEmbedder,
    texts: Sequence[str],
    rationales: Sequence[str | Rationale | None],
    role: Role,
    *,
    rationale: bool,
) -> list[PooledTokens]:
    """Tokenise texts and find their rationales: given, cached, or else written now.

    Args:
        embedder: Embeds the texts.
        texts: Texts without lone surrogates.
        rationales: Given rationales; None for those to look up or write.
        role: What the texts are.
        rationale: Whether those that are not given are looked up or written at all.

    Returns:
        One PooledTokens a text.

    Raises:
        InputError: If a text is too long and `on_truncation` is "error", or a given rationale is.
    """
    writer, system_prompt = embedder.writer, embedder.prompts.get(role)
    own = [given.token_ids if isinstance(given, Rationale) else given for given in rationales]
    features = writer.preprocess(list(zip(texts, own, strict=True)), prompt=system_prompt)
    requests = read_requests(features, writer.max_new_tokens if rationale else 0)
    lengths: list[int] = features["text_length"].tolist()
    missing = [i for i, request in enumerate(requests) if request.max_new_tokens and lengths[i]]
    rows = writer.rows([requests[i] for i in missing], role) if missing else []
    written = {
        i: Rationale(
            text=row.text, token_ids=row.token_ids, truncated=row.finish_reason == "length", text_truncated=False
        )
        for i, row in zip(missing, rows, strict=True)
    }
    prompt = writer.prompt(system_prompt)
    found = []
    with writer.tokenizer_lock:
        for i, (text, given, request) in enumerate(zip(texts, rationales, requests, strict=True)):
            if not lengths[i]:
                found.append(_blank(text))
            elif isinstance(given, str):
                about = replace(NO_RATIONALE, text=given, token_ids=request.rationale_ids or ())
                spans = prompt.spans(given, rationale=True)
                found.append(_with_spans(prompt, text, request, lengths[i], about, spans, given=True))
            else:
                about = given or written.get(i, NO_RATIONALE)
                decoded, spans = decoded_spans(writer.tokenizer, about.token_ids)
                about = replace(about, text=decoded)
                found.append(_with_spans(prompt, text, request, lengths[i], about, spans, given=False))
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
    request: RationaleRequest,
    length: int,
    rationale: Rationale,
    rationale_spans: Sequence[Span],
    *,
    given: bool,
) -> PooledTokens:
    """Put the tokens of a text, of the template and of a rationale in a row, with what they stand for."""
    all_spans = prompt.spans(text)
    spans = all_spans[:length]
    cut = length < len(all_spans)
    counts: dict[Part, int] = {"text": length, "template": len(prompt.suffix_ids), "rationale": len(rationale_spans)}
    parts = tuple(part for part, count in counts.items() for _ in range(count))
    template = tuple(str(prompt.tokenizer.decode([token])) for token in prompt.suffix_ids)
    return PooledTokens(
        text=text,
        rationale=replace(rationale, text_truncated=cut),
        given=given,
        input_ids=request.input_ids + rationale.token_ids,
        prefix_length=request.prefix_length,
        strings=(
            *(text[start:end] for start, end in spans),
            *template,
            *(rationale.text[start:end] for start, end in rationale_spans),
        ),
        parts=parts,
        spans=(*spans, *(None for _ in template), *rationale_spans),
        text_end=spans[-1][1] if cut else len(text),
    )


def token_states(
    embedder: GraceEmbedder, tokens: Sequence[PooledTokens]
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Run the model once over each text with its rationale; nothing is generated. Longest texts come first.

    Args:
        embedder: Embeds the texts.
        tokens: From `pooled_tokens`.

    Yields:
        Place of a text, and the last hidden states of its pooled tokens. Shape: (pooled tokens, hidden), float32.

    Raises:
        NonFiniteEmbeddingError: If the model gives NaN or infinity.
    """
    writer, width = embedder.writer, embedder.writer.get_embedding_dimension()
    for indices in _batches(embedder, tokens):
        if not tokens[indices[0]].input_ids:
            yield from ((index, np.zeros((0, width), dtype=np.float32)) for index in indices)
            continue
        ids, mask = pad_rows([tokens[index].input_ids for index in indices], writer.tokenizer.pad_token_id or 0)
        training, device = writer.model.training, writer.model.device
        with getattr(writer.engine, "lock", threading.Lock()), torch.inference_mode():
            writer.model.eval()
            try:
                output = writer.model.base_model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                )
            finally:
                writer.model.train(training)
        for row, index in enumerate(indices):
            item = tokens[index]
            states = output.last_hidden_state[row, item.prefix_length : len(item.input_ids)].float().cpu().numpy()
            if not np.isfinite(states).all():
                raise NonFiniteEmbeddingError(
                    f"The model gave NaN or infinity in {writer.engine.dtype} for a text of {len(item.input_ids)} "
                    "tokens. Load it in float32 to have the text explained: model_kwargs={'dtype': 'float32'}."
                )
            yield index, states


def _batches(embedder: GraceEmbedder, tokens: Sequence[PooledTokens]) -> Iterator[list[int]]:
    """Places of texts that are run together: longest first, padded to no more than the token budget."""
    budget = min(embedder.writer.max_batch_tokens or BATCH_TOKENS, BATCH_TOKENS)
    most = longest_batched(embedder.writer.model.config.get_text_config())
    order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index].input_ids))
    while order:
        longest = len(tokens[order[0]].input_ids)
        rows = 1 if longest > most else max(1, budget // max(1, longest))
        batch = [index for index in order[:rows] if bool(tokens[index].input_ids) == bool(longest)]
        yield batch
        order = order[len(batch) :]
