"""RationalePrompt: from a text to the token ids that a policy is shown.

    tokens = prefix | text | suffix            prefix: system prompt and user header; suffix: turn end, assistant header

The three parts are tokenised apart. So the prefix is the same for every text, pooling starts at a constant, shortening
touches the user's text only, and nothing inside a text can merge with, or pass for, the template's own tokens.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_retrieval.engine import RationaleRequest
from grace_retrieval.errors import InputError, ModelLoadError
from grace_retrieval.markup import holds_markup, markup_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_PROMPT",
    "DOCUMENT_PROMPT",
    "QUERY_PROMPT",
    "RationalePrompt",
    "RenderedText",
    "TruncationWarning",
    "check_texts",
]

DEFAULT_PROMPT = (
    "Read the text. Inside <think></think>, reason about what it says and why; "
    "then state in one or two sentences what it is about."
)
QUERY_PROMPT = (
    "Read the search query. Inside <think></think>, reason about what the searcher wants to know; "
    "then state in one or two sentences what a text that answers it is about."
)
DOCUMENT_PROMPT = (
    "Read the document. Inside <think></think>, reason about what it says and why; "
    "then state in one or two sentences what it is about."
)

# Stands for the text while the template is rendered. Plain letters, so that no template escapes or trims it.
_PLACEHOLDER = "GraceTextPlaceholder"
_PROMPT_PLACEHOLDER = "GracePromptPlaceholder"

# Templates that print today's date would give every day its own embeddings.
_TEMPLATE_DATE = datetime.datetime(2025, 1, 1)


class TruncationWarning(UserWarning):
    """A text was longer than the model's limit and was shortened."""


@dataclass(frozen=True, kw_only=True)
class RenderedText:
    """A text as a policy sees it.

    Args:
        input_ids: prefix, text and suffix. Shape: (tokens,).
        prefix_length: Number of tokens of the system prefix; pooling starts behind them.
        text_length: Number of tokens of the user's text.
        truncated: Whether the text was shortened.
        rationale_ids: A given rationale, to be pooled instead of a written one; None if none is given.
    """

    input_ids: tuple[int, ...]
    prefix_length: int
    text_length: int
    truncated: bool
    rationale_ids: tuple[int, ...] | None = None

    def request(self, max_new_tokens: int, sample: int = 0) -> RationaleRequest:
        """What a policy is asked for.

        Args:
            max_new_tokens: Most tokens of a rationale, unless one is given.
            sample: Number of the sample.
        """
        return RationaleRequest(
            input_ids=self.input_ids,
            prefix_length=self.prefix_length,
            max_new_tokens=max_new_tokens if self.rationale_ids is None else 0,
            rationale_ids=self.rationale_ids,
            sample=sample,
        )


class RationalePrompt:
    """Renders system prompt and text through the model's own chat template.

    A template without a system role gets the system prompt at the head of the user's turn; a model without a template
    gets a plain layout of headings.

    Args:
        tokenizer: Tokenizer of the policy.
        system_prompt: What the policy is asked to do with a text.

    Raises:
        ModelLoadError: If the chat template does not show the user's text exactly once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str) -> None:
        if not isinstance(system_prompt, str):
            raise InputError(f"system_prompt is {type(system_prompt).__name__}: give a string.")
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        head, tail = _split_template(tokenizer, system_prompt)
        self.prefix_ids: tuple[int, ...] = tuple(tokenizer(head, add_special_tokens=False)["input_ids"])
        self.suffix_ids: tuple[int, ...] = tuple(tokenizer(tail, add_special_tokens=False)["input_ids"])
        if not tokenizer.chat_template and tokenizer.bos_token_id is not None:
            self.prefix_ids = (tokenizer.bos_token_id, *self.prefix_ids)
        self._markup = markup_tokens(tokenizer)
        # A rationale may hold <think> tags, but no token that ends a turn or starts one.
        self._control = {token: text for token, text in self._markup.items() if token in tokenizer.all_special_ids}

    def render(self, texts: Sequence[str], *, max_length: int | None = None) -> list[RenderedText]:
        """Tokenise texts inside the template.

        Args:
            texts: Texts, kept byte for byte; lone surrogates, which no tokenizer can take, become U+FFFD.
            max_length: Most tokens of the whole prompt. Only the text is shortened, at its end, and never to nothing:
                a template that exceeds the limit alone stays whole.

        Returns:
            One RenderedText a text.
        """
        prefix, suffix = self.prefix_ids, self.suffix_ids
        room = None if max_length is None else max(1, max_length - len(prefix) - len(suffix))
        rendered = []
        for ids in self._tokenize(texts, self._markup):
            kept = ids if room is None else ids[:room]
            rendered.append(
                RenderedText(
                    input_ids=prefix + tuple(kept) + suffix,
                    prefix_length=len(prefix),
                    text_length=len(kept),
                    truncated=len(kept) < len(ids),
                )
            )
        return rendered

    def rationale_ids(self, rationales: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokenise given rationales; <think> tags keep their meaning, tokens of turns lose theirs."""
        return [tuple(ids) for ids in self._tokenize(rationales, self._control)]

    def spans(self, text: str, *, rationale: bool = False) -> list[tuple[int, int]]:
        """Characters that each token of a text stands for, before any shortening.

        Args:
            text: A text without lone surrogates.
            rationale: Whether it is a given rationale, see `rationale_ids`.

        Returns:
            Start and end (exclusive) of each token of `render` or `rationale_ids`. Tokens that share a character have
            it both; characters between spans, such as spaces, may belong to none.

        Raises:
            InputError: If the tokenizer cannot tell (one that is not built on the tokenizers library).
        """
        if not self.tokenizer.is_fast:
            raise InputError(
                f"{type(self.tokenizer).__name__} does not tell which characters a token stands for. Load the model "
                "with a tokenizer of the tokenizers library (a tokenizer.json in its folder)."
            )
        return [
            (start + first, start + end)
            for start, piece in self._pieces(text, self._control if rationale else self._markup)
            for first, end in self.tokenizer(
                piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True
            )["offset_mapping"]
        ]

    def _tokenize(self, texts: Sequence[str], markup: dict[int, str]) -> list[list[int]]:
        """Tokenise without special tokens, and with nothing in `texts` becoming one of `markup`."""
        if not texts:
            return []
        texts = [without_surrogates(text) for text in texts]
        tokenized: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [
            self._tokenize_as_words(text, markup) if holds_markup(self.tokenizer, text, ids, markup) else ids
            for text, ids in zip(texts, tokenized, strict=True)
        ]

    def _tokenize_as_words(self, text: str, markup: dict[int, str]) -> list[int]:
        """Tokenise a text that contains markup, in pieces that contain none."""
        pieces = [piece for _, piece in self._pieces(text, markup)]
        tokenized: list[list[int]] = self.tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]
        return [token for ids in tokenized for token in ids]

    def _pieces(self, text: str, markup: dict[int, str], start: int = 0) -> Iterator[tuple[int, str]]:
        """Cut each occurrence of markup behind its first character; yields where a piece starts, and the piece."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not holds_markup(self.tokenizer, text, tokens, markup):
            yield start, text
            return
        pattern = re.compile("|".join(re.escape(word) for word in sorted(markup.values(), key=len, reverse=True)))
        cuts = [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
        pieces = [(first, text[first:end]) for first, end in itertools.pairwise(cuts)]
        if len(text) < 2 or len(pieces) < 2:
            words = sorted({markup[token] for token in tokens if token in markup})
            raise InputError(f"The tokenizer takes plain text for the markup {words}: {text[:60]!r}. Remove it.")
        for first, piece in pieces:
            yield from self._pieces(piece, markup, start + first)


def check_texts(texts: Sequence[Any], *, what: str = "text") -> None:
    """Refuse what is not a string, with its place in the list.

    Raises:
        InputError: If an element is not a str.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            mend = {
                bytes: "Decode it first, e.g. text.decode('utf-8').",
                type(None): "Replace it by '' (embedded as zeros) or leave it out.",
            }.get(type(text), "Convert it with str() if its text form is what you mean.")
            raise InputError(f"{what} {index} is {type(text).__name__} ({text!r:.60}), not str. {mend}")


def without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone ones by U+FFFD; other texts are returned as they are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        warnings.warn(
            f"A text holds surrogate code points (the first at character {error.start}), which are not characters: "
            "pairs are joined, lone ones are read as U+FFFD.",
            stacklevel=2,
        )
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _split_template(tokenizer: PreTrainedTokenizerBase, system_prompt: str) -> tuple[str, str]:
    """Render the template and return what stands before and behind the user's text."""
    if not tokenizer.chat_template:
        return f"{system_prompt}\n\nText:\n", "\n\nRationale:\n"
    user = {"role": "user", "content": _PLACEHOLDER}
    attempts = [(system_prompt, [user])]
    if system_prompt:
        # Some templates cut words such as /think out of every turn, and with them half of a </think>: then the prompt
        # is put in afterwards. Only then, because a template may also trim a prompt.
        attempts = [
            (shown, messages)
            for shown in (system_prompt, _PROMPT_PLACEHOLDER)
            for messages in (
                [{"role": "system", "content": shown}, user],
                [{"role": "user", "content": f"{shown}\n\n{_PLACEHOLDER}"}],
            )
        ]
    reason = ""
    for shown, messages in attempts:
        try:
            rendered = tokenizer.apply_chat_template(
                messages,
                chat_template=_with_fixed_date(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                date_string=_TEMPLATE_DATE.strftime("%d %b %Y"),
            )
        except Exception as error:  # templates raise what they like to say that a role is not supported
            reason = f"{type(error).__name__}: {error}"
            continue
        if isinstance(rendered, str) and rendered.count(_PLACEHOLDER) == 1 and shown.strip() in rendered:
            head, _, tail = rendered.partition(_PLACEHOLDER)
            if shown != system_prompt:
                head, tail = (part.replace(shown, system_prompt) for part in (head, tail))
            return head, tail
        reason = "the rendered template does not show the system prompt and the text once each"
    raise ModelLoadError(
        f"The chat template of {tokenizer.name_or_path or 'this tokenizer'!r} cannot show a text: {reason}. Set "
        "tokenizer.chat_template to one that shows the user's message once, or to None for a plain layout."
    )


def _with_fixed_date(template: str) -> str:
    """Put a clock that stands still in front of a template; transformers takes no function from its callers."""
    if "strftime_now" not in template:
        return template
    # Whatever form it is called with, by name or not: directives are replaced one by one, %% last.
    parts = {"%%": "\0"}
    parts |= {f"%-{letter}": _TEMPLATE_DATE.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dmHIMSjyUW"}
    parts |= {f"%{letter}": _TEMPLATE_DATE.strftime(f"%{letter}") for letter in "aAwdbBmyYHIpMSfjUWGuVcxXeDFTRhn"}
    parts |= {"%z": "", "%Z": "", "\0": "%"}
    replaced = "".join(f" | replace({json.dumps(part)}, {json.dumps(date)})" for part, date in parts.items())
    clock = "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}"
    return clock + "{{ '' }}" + template  # the empty expression keeps a leading newline from being trimmed
