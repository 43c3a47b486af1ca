"""From a GGUF file's vocabulary to a tokenizer that parts text as the model's own does.

A byte-level vocabulary says by one word, `tokenizer.ggml.pre`, how text is parted before merging. Another rule gives
other tokens for blank lines, digits and code, so a word that is not known is refused.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from grace_retrieval.errors import ModelLoadError
from grace_retrieval.gguf.header import GGUFHeader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PRE_TOKENIZERS", "build_tokenizer"]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"|\p{N}" + _REST

_GPT2_STEPS = ("gpt2",)
_DIGITS_STEPS = ("digits", "gpt2")

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe"), _GPT2_STEPS),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_STEPS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
}
"""How text is parted, by the word that files have for it: named steps, or one regular expression."""

# Vocabularies of these take a piece that is a word as it is, whatever the merges say.
_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"})
# Text of these is brought into Unicode's composed form first: their own tokenizers do, and llama.cpp does not.
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen"})

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "▁"


def build_tokenizer(header: GGUFHeader) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in a file, with its chat template.

    Raises:
        ModelLoadError: If the file has none, or one that is not known by name.
    """
    from transformers import PreTrainedTokenizerFast

    kind, words = header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.tokens")
    if not words or kind in (None, "none", "no_vocab"):
        raise ModelLoadError(
            f"{header.path} has no tokenizer, so no text can be shown to it. Convert the model again with llama.cpp's "
            "convert_hf_to_gguf.py, without --no-vocab."
        )
    if len(set(words)) != len(words):
        raise ModelLoadError(f"{header.path} has a vocabulary with the same token twice: it is damaged.")
    if kind == "gpt2":
        tokenizer = _byte_level(header, words)
    elif kind == "llama":
        tokenizer = _sentencepiece(header, words)
    else:
        raise ModelLoadError(
            f"{header.path} has a tokenizer of the kind {kind!r}; read from GGUF are 'gpt2' (byte-level) and 'llama' "
            "(SentencePiece). Give the model's own folder instead."
        )
    types = header.get("tokenizer.ggml.token_type") or [1] * len(words)
    special = [AddedToken(word, normalized=False, special=True) for word, t in _pairs(words, types) if t == _CONTROL]
    defined = [AddedToken(word, normalized=False) for word, t in _pairs(words, types) if t == _USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(defined)
    roles: dict[str, str] = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token := header.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            if not 0 <= token < len(words):
                raise ModelLoadError(f"{header.path} has {len(words)} tokens and names {token} as its {name} token.")
            roles[f"{role}_token"] = words[token]
    template = header.get("tokenizer.chat_template")
    if not template:
        warnings.warn(
            f"{header.path} has no chat template: texts are shown to it under plain headings, which suits models that "
            "were trained so. Otherwise give one: processor_kwargs={'chat_template': '...'}.",
            stacklevel=2,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=template,
        model_max_length=header.own("context_length"),
        **roles,
    )


def _pairs(words: list[str], types: list[int]) -> zip[tuple[str, int]]:
    return zip(words, types, strict=True)


def _byte_level(header: GGUFHeader, words: list[str]) -> Tokenizer:
    """Byte-level BPE, parted by the rule that the file names."""
    rule, merges = header.get("tokenizer.ggml.pre"), header.get("tokenizer.ggml.merges")
    if not merges:
        raise ModelLoadError(f"{header.path} has a byte-level tokenizer without merges: it is damaged.")
    if rule not in PRE_TOKENIZERS:
        stated = "does not say" if rule in (None, "default") else f"says {rule!r}, which is not known here,"
        raise ModelLoadError(
            f"{header.path} {stated} by which rule its tokenizer parts text (tokenizer.ggml.pre). Known are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}. Convert the model again with llama.cpp's convert_hf_to_gguf.py, or "
            "give its own folder."
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: token for token, word in enumerate(words)},
            merges=[_halves(header, merge) for merge in merges],
            ignore_merges=rule in _WHOLE_WORDS,
        )
    )
    if rule in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step for name in PRE_TOKENIZERS[rule] for step in _steps(name)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _steps(name: str) -> list[Any]:
    if name == "digits":
        return [pre_tokenizers.Digits(individual_digits=True)]
    if name == "gpt2":
        return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    return [
        pre_tokenizers.Split(Regex(name), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _halves(header: GGUFHeader, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ModelLoadError(f"{header.path} has the merge {merge!r}, which is no pair of tokens: it is damaged.")
    return left, right


def _sentencepiece(header: GGUFHeader, words: list[str]) -> Tokenizer:
    """SentencePiece's BPE: the pair whose union has the highest score is merged first."""
    scores, types = header.get("tokenizer.ggml.scores"), header.get("tokenizer.ggml.token_type")
    if not scores or not types or len(scores) != len(words) or len(types) != len(words):
        raise ModelLoadError(f"{header.path} has a SentencePiece tokenizer without a score and a type for each token.")
    vocabulary = {word: token for token, word in enumerate(words)}
    unknown = next((word for word, kind in _pairs(words, types) if kind == _UNKNOWN), None)
    merges = []
    # A token of control is never put together from letters.
    for token, word in enumerate(words):
        if types[token] in (_UNKNOWN, _CONTROL, 6) or len(word) < 2:
            continue
        for cut in range(1, len(word)):
            left, right = vocabulary.get(word[:cut]), vocabulary.get(word[cut:])
            if left is not None and right is not None:
                merges.append((-scores[token], token, left, right, (word[:cut], word[cut:])))
    merges.sort(key=lambda merge: merge[:4])
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[merge[-1] for merge in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = header.get("tokenizer.ggml.add_space_prefix", True)
    spaces: list[Any] = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer
