"""Which tokens of a vocabulary are markup, and which may stand in any text.

Tokenizers call special what models use for very different things: turns and the ends of texts, but also whatever a
fine-tune pads with, which may be "!", a newline or the token of unknown words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["holds_markup", "markup_tokens", "unwritten_tokens"]

_BRACKETS = re.compile(r"[<\[].*[>\]]", re.DOTALL)  # <think>, [INST], <|im_end|>
_SYMBOLS = re.compile(r"\W+\w.*\W", re.DOTALL)  # ]~b] of MiniMax, >>TITLE<< of Falcon, ▁<EOT> of Code Llama


def markup_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Added tokens that carry structure: what is written in brackets, and special tokens between other symbols.

    All others are ordinary text: runs of spaces in GPT-NeoX, say, and special tokens such as "!". So is a token that
    stands for nothing but unknown words.

    Args:
        tokenizer: Tokenizer of a policy.

    Returns:
        Their ids and spellings.
    """
    others = {name for kind, name in tokenizer.special_tokens_map.items() if kind != "unk_token"}
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if (_BRACKETS.fullmatch(added.content) or (added.special and _SYMBOLS.fullmatch(added.content)))
        and (added.content != tokenizer.unk_token or added.content in others)
    }


def holds_markup(
    tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Collection[int], markup: Mapping[int, str]
) -> bool:
    """Whether a text was tokenised to markup.

    Args:
        tokenizer: What tokenised it.
        text: The text.
        token_ids: Its tokens. The token of unknown words, which any text may hold, counts where it is spelt out only.
        markup: Ids and spellings.
    """
    return any(token in markup and (token != tokenizer.unk_token_id or markup[token] in text) for token in token_ids)


def unwritten_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that the text of a rationale leaves out: special ones, save those that are ordinary text.

    Args:
        tokenizer: Tokenizer of a policy.

    Returns:
        Their ids.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(special.intersection([*markup_tokens(tokenizer), tokenizer.unk_token_id]))
