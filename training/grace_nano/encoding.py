"""From texts and chat examples to token ids and kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from grace_nano.rationale import ChatExample, copied_share, trim_rationale
from grace_nano.recipe import RationaleRecipe
from grace_nano.store import CONTEXT, RATIONALE, TEXT
from grace_nano.tokenizer import END_OF_TEXT, IM_END, IM_START, token_id

__all__ = ["ChatEncoder", "encode_plain"]


def encode_plain(tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
    """Encode plain texts, each ended by the end-of-text token; longer texts are cut at `max_tokens`."""
    end_id = token_id(tokenizer, END_OF_TEXT)
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids = encoding.ids[: max_tokens - 1]
        if len(ids) == len(encoding.ids):
            ids.append(end_id)
        yield ids, [TEXT] * len(ids)


class ChatEncoder:
    """Encodes chat examples the way the chat template followed by generation would.

    Args:
        tokenizer: The tokenizer.
        prompts: System prompt by role.
        bounds: Bounds on rationales.
        max_tokens: Longest example; the text of longer ones is cut at the end, the template stays whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: dict[str, str], bounds: RationaleRecipe, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.bounds = bounds
        self.max_tokens = max_tokens
        self._before = {
            role: self._ids(f"{IM_START}system\n{prompt}{IM_END}\n{IM_START}user\n") for role, prompt in prompts.items()
        }
        self._after = self._ids(f"{IM_END}\n{IM_START}assistant\n")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, examples: Iterable[ChatExample]) -> Iterator[tuple[list[int], list[int]]]:
        """Encode examples; those without a fitting or faithful rationale are left out."""
        kept: list[tuple[ChatExample, str]] = []
        for example in examples:
            is_short = len(example.text) < self.bounds.short_text_characters
            rationale = trim_rationale(
                example.parts,
                lambda text: len(self._ids(text)),
                self.bounds.short_target_tokens if is_short else self.bounds.target_tokens,
                self.bounds.short_max_tokens if is_short else self.bounds.max_tokens,
            )
            if rationale is None:
                continue
            if example.role != "query" and len(example.text) > 400:
                if copied_share(rationale, example.text) < self.bounds.min_overlap:
                    continue
            kept.append((example, rationale))
        texts = self.tokenizer.encode_batch([example.text for example, _ in kept], add_special_tokens=False)
        rationales = self.tokenizer.encode_batch([text for _, text in kept], add_special_tokens=False)
        for (example, _), text, written in zip(kept, texts, rationales, strict=True):
            before = self._before[example.role]
            room = self.max_tokens - len(before) - len(self._after) - len(written.ids)
            text_ids = text.ids[:room]
            ids = before + text_ids + self._after + written.ids
            kinds = [CONTEXT] * len(before) + [TEXT] * len(text_ids) + [CONTEXT] * len(self._after)
            yield ids, kinds + [RATIONALE] * len(written.ids)
