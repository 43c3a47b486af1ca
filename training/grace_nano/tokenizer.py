"""The byte-level BPE tokenizer of grace-nano-base: training, special tokens and the saved files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "THINK_CLOSE",
    "THINK_OPEN",
    "save_tokenizer",
    "token_id",
    "train_tokenizer",
]

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Qwen's pattern: contractions, words with one leading space or sign, single digits, signs, line ends, spaces.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on `texts`.

    All 256 bytes are in the alphabet, and there is no normaliser and no prefix space, so every text survives
    a round trip. Turn markers are special tokens (dropped when decoding with `skip_special_tokens`); the
    think tags are ordinary added tokens, which decoding keeps.

    Args:
        texts: The training texts, read once.
        vocab_size: Total number of ids, added tokens included.

    Returns:
        The trained tokenizer, with the five added tokens as its last ids.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, IM_START, IM_END]
    thinks = [THINK_OPEN, THINK_CLOSE]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(thinks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in thinks])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of an added token.

    Raises:
        ValueError: The tokenizer does not know it.
    """
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}; train it with `train_tokenizer`")
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write the files from which `AutoTokenizer.from_pretrained` builds the same tokenizer.

    Args:
        tokenizer: The trained tokenizer.
        folder: Target folder, made when missing.
        model_max_length: Number of positions of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "extra_special_tokens": [IM_START],
        "model_max_length": model_max_length,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "tokenizer_class": "TokenizersBackend",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
