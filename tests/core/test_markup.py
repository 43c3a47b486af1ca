"""Ordinary text is not markup, whatever a tokenizer calls special; and markup in a text is not markup either."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grace_retrieval import GraceEmbedder, Rationale, RationalePrompt
from grace_retrieval.loading import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNKNOWN, END, BEGIN = 0, 1, 2
WORDS = ["<unk>", "</s>", "<s>", *map(chr, range(33, 127)), "\n", "▁", "▁bread", "▁rises", "▁the", "tides"]
TEXTS = ["bread rises", "bread rises!", "!", "!!! the!", "the\nbread\n", "\n!", "tides, the tides"]


def tokenizer_without_bytes(
    pad: str, *, unknown: str = "<unk>", end: str = "</s>", special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows ASCII and a few words, and no bytes to spell others with."""
    words = [unknown, *WORDS[1:]]
    backend = Tokenizer(models.Unigram([(w, -1.0 - i * 0.01) for i, w in enumerate(words)], 0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token="<s>",
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=list(special),
    )


@pytest.fixture
def make_padded(
    make_model: Callable[..., PreTrainedModel], make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> Callable[..., GraceEmbedder]:
    """`make_padded(pad)`: an embedder whose tokenizer pads with this token; the weights are the same for all."""

    def make(pad: str) -> GraceEmbedder:
        folder = tmp_path / str(WORDS.index(pad))
        make_model("llama").save_pretrained(folder)
        tokenizer_without_bytes(pad).save_pretrained(folder)
        return make_embedder(folder)

    return make


def text_ids(prompt: RationalePrompt, text: str) -> tuple[int, ...]:
    (rendered,) = prompt.render([text])
    return rendered.input_ids[rendered.prefix_length :][: rendered.text_length]


@pytest.mark.parametrize("pad", ["!", "\n", "▁the", "tides", "end"])
def test_a_special_token_that_is_an_ordinary_word_is_text(pad: str) -> None:
    tokenizer = tokenizer_without_bytes(pad)
    assert tokenizer.pad_token_id in tokenizer.all_special_ids
    prompt = RationalePrompt(tokenizer, "Say it.")
    for text in TEXTS:
        ids = text_ids(prompt, text)
        assert tokenizer.decode(ids) == text
        assert len(prompt.spans(text)) == len(ids)
        assert prompt.rationale_ids([text]) == [ids]


def test_what_pads_changes_no_vector(make_padded: Callable[..., GraceEmbedder]) -> None:
    texts = ["bread rises", "bread rises!", "the bread", "bread 😀 rises", "日本語の文", "</s>!"]
    vectors = [make_padded(pad).encode_document(texts, rationale=False) for pad in ("</s>", "!", "\n", "<unk>")]
    for other in vectors[1:]:
        np.testing.assert_array_equal(other, vectors[0])


@pytest.mark.parametrize(
    ("unknown", "end"), [("<unk>", "</s>"), ("<|endoftext|>", "</s>"), ("<|endoftext|>", "<|endoftext|>")]
)
def test_unknown_words_are_text_and_their_token_spelt_out_is_read_as_words(unknown: str, end: str) -> None:
    tokenizer = tokenizer_without_bytes(unknown, unknown=unknown, end=end)
    prompt = RationalePrompt(tokenizer, "Say it.")
    assert text_ids(prompt, "bread 😀 rises").count(UNKNOWN) == 1
    for text in (unknown, f"bread {unknown}", f"{unknown}{unknown}"):
        assert not set(text_ids(prompt, text)) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(text_ids(prompt, text)) == text
    ids = text_ids(prompt, f"日 {unknown}")
    assert [token for token in ids if token in tokenizer.all_special_ids] == [UNKNOWN]
    assert len(prompt.spans(f"日 {unknown}")) == len(ids)


@pytest.mark.parametrize("word", ["]~b]", "[e~[", ">>TITLE<<", "▁<EOT>", "<pad>", "[PAD]", "|end|"])
def test_special_tokens_between_symbols_stay_markup(word: str) -> None:
    tokenizer = tokenizer_without_bytes("</s>", special=[word])
    (special,) = tokenizer.convert_tokens_to_ids([word])
    assert tokenizer(word, add_special_tokens=False)["input_ids"] == [special]
    prompt = RationalePrompt(tokenizer, "Say it.")
    for text in (word, f"bread{word}{word}"):
        assert special not in text_ids(prompt, text)
        assert special not in prompt.rationale_ids([text])[0]


@pytest.mark.parametrize("pad", ["!", "\n", "tides"])
def test_a_rationale_keeps_an_ordinary_word_that_pads(make_padded: Callable[..., GraceEmbedder], pad: str) -> None:
    embedder = make_padded(pad)
    ids = embedder.tokenizer("bread rises" + pad, add_special_tokens=False)["input_ids"]
    assert embedder.tokenizer.pad_token_id in ids
    assert embedder.pipeline.decode([BEGIN, *ids, UNKNOWN, END]) == "bread rises" + pad


@pytest.mark.parametrize("pad", ["!", "tides"])
def test_an_explanation_shows_the_word_that_pads(make_padded: Callable[..., GraceEmbedder], pad: str) -> None:
    embedder = make_padded(pad)
    ids = tuple(embedder.tokenizer("bread rises" + pad, add_special_tokens=False)["input_ids"])
    given = Rationale(text="", token_ids=(*ids, END), truncated=False, text_truncated=False)
    explained = embedder.explain("tides", ["a"], document_rationales=[given])[0].document
    assert explained.rationale.text == "bread rises" + pad
    places = [place for place, part in enumerate(explained.parts) if part == "rationale"]
    assert len(places) == len(ids) + 1, "the end token is pooled, and shown as nothing"
    assert explained.tokens[places[-1]] == "" and explained.tokens[places[-2]].strip() in pad


@pytest.mark.parametrize("model", ["tiny", "grace-nano", "grace-nano-base"])
def test_texts_of_usual_tokenizers_leave_out_what_is_special(
    make_embedder: Callable[..., GraceEmbedder], tiny_policy: Path, model: str
) -> None:
    folder: Any = tiny_policy if model == "tiny" else resolve_model(model)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    pipeline = make_embedder(folder).pipeline
    chance = random.Random(0)
    for _ in range(200):
        ids = [*chance.choices(range(len(tokenizer)), k=20), *chance.choices(tokenizer.all_special_ids, k=2)]
        chance.shuffle(ids)
        assert pipeline.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
