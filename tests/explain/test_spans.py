"""Which characters tokens stand for."""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from grace_retrieval import RationalePrompt
from grace_retrieval.errors import InputError
from grace_retrieval.explain import documents, spans
from grace_retrieval.explain.spans import decoded_spans, is_word, word_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MakeTokenizer = Callable[..., "PreTrainedTokenizerBase"]

TEXTS = [
    "What causes ocean tides?",
    "  leading,\n\n trailing \t",
    "naïve café — “quoted” 日本語 🙂🙃 👩‍👩‍👧",
    "a <|im_end|> b <|im_start|>user <think> c </think>",
    "<|im_end|><|im_end|>",
    "x\u0000y\r\nz",
]


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    return make_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rationale", [False, True])
def test_spans_are_those_of_the_tokens_that_are_embedded(
    tokenizer: PreTrainedTokenizerBase, text: str, rationale: bool
) -> None:
    prompt = RationalePrompt(tokenizer, "Say what it is.")
    found = prompt.spans(text, rationale=rationale)
    if rationale:
        (ids,) = prompt.rationale_ids([text])
    else:
        (rendered,) = prompt.render([text])
        ids = rendered.input_ids[rendered.prefix_length :][: rendered.text_length]
    assert len(found) == len(ids)
    for (start, end), token in zip(found, ids, strict=True):
        decoded = tokenizer.decode([token])
        if "\ufffd" in decoded:  # part of a character: its span is the whole
            assert end > start and any(ord(character) > 127 for character in text[start:end])
        else:
            assert text[start:end] == decoded
    covered = {place for start, end in found for place in range(start, end)}
    assert covered == set(range(len(text)))
    assert found == sorted(found)


def test_spans_of_written_tokens_cover_the_decoded_text(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(0)
    for round_ in range(60):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.choice([0, 1, 9, 60]))]
        if round_ % 2:  # well-formed text, cut anywhere
            ids = tokenizer(TEXTS[2] * 3, add_special_tokens=False)["input_ids"][: rng.randrange(1, 90)]
        text, found = decoded_spans(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert len(found) == len(ids)
        assert {place for start, end in found for place in range(start, end)} == set(range(len(text)))
        assert found == sorted(found)


def test_special_tokens_in_a_rationale_have_no_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    a, b = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("ab", " cd"))
    text, found = decoded_spans(tokenizer, [*a, end, *b])
    assert text == "ab cd" and found[len(a)] == (2, 2)


@pytest.mark.parametrize(
    ("text", "pieces", "words"),
    [
        ("Bread rises.", ["Bre", "ad", " ris", "es", "."], ["Bread", " rises", "."]),
        ("don't", ["don", "'", "t"], ["don", "'", "t"]),
        ("x2y 10%", ["x", "2", "y", " 1", "0", "%"], ["x2y", " 10", "%"]),
        ("日本語", ["日", "本", "語"], ["日", "本", "語"]),
        ("e\u0301te", ["e", "\u0301", "te"], ["e\u0301te"]),
        ("\n\nA", ["\n\n", "A"], ["\n\n", "A"]),
    ],
)
def test_tokens_are_put_together_to_words(text: str, pieces: list[str], words: list[str]) -> None:
    found, start = [], 0
    for piece in pieces:
        found.append((start, start + len(piece)))
        start += len(piece)
    groups = word_groups(text, found)
    assert [text[found[first][0] : found[stop - 1][1]] for first, stop in groups] == words
    assert [token for first, stop in groups for token in range(first, stop)] == list(range(len(pieces)))


def test_tokens_that_share_a_character_are_one_word() -> None:
    assert word_groups("🙂🙃", [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2)]) == [(0, 3), (3, 5)]
    assert word_groups("ab", [(0, 1), (1, 1), (1, 2)]) == [(0, 3)]  # a token without characters


def test_words_are_told_from_punctuation() -> None:
    assert all(map(is_word, ["tide", "7", "日", "🙂", "+", "a."]))
    assert not any(map(is_word, ["", " ", ".", "\n\n", "—", "“”", "\u0000"]))


def test_a_tokenizer_that_tells_no_spans_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = RationalePrompt(tokenizer, "Say what it is.")
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(InputError, match=r"does not tell which characters.*tokenizer\.json"):
        prompt.spans("a")


@pytest.mark.parametrize("module", [spans, documents])
def test_the_examples_are_right(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0 and found.failed == 0
