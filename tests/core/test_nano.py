"""grace-nano and grace-nano-base, which ship with the package: small, stock, and able to finish what they write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grace_retrieval
from grace_retrieval import GraceEmbedder, Rationale
from grace_retrieval.loading import resolve_model

MODELS = Path(grace_retrieval.__file__).parent / "models"
NANO = MODELS / "grace-nano"

TEXTS = [
    "Why do tides follow the moon?",
    "Bread rises because yeast turns sugar into carbon dioxide, which stays in the dough as bubbles.",
    "We present a method for training neural networks that needs no labels and transfers to new tasks.",
    "treatment of high blood pressure",
    "A triangle with two equal sides has two equal angles.",
    "The French Revolution began in 1789 and ended the monarchy.",
    "How do vaccines protect against viruses?",
    "Galaxies rotate faster than their visible mass explains, which suggests dark matter.",
]
HARD = [
    "naïve café — 東京 🚀",
    "  both ends \n\n",
    "\ttabs\r\nreturns\r",
    "שלום עולם مرحبا",
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈🇨🇭",
    "e\u0301 and \u00e9, \ufb01 ligature, \u212b",
    "NUL \x00, escape \x1b, delete \x7f",
    "\U0010ffff \u2028 \ufeff \u200b",
    "∑_{i=1}^{n} x_i ≤ ∫ f(x) dx",
    "def f(x):\n    return {'a': [x] * 3}  # ∀",
]


@pytest.fixture(scope="module")
def embedder() -> GraceEmbedder:
    return GraceEmbedder("grace-nano", cache="memory", device="cpu")


@pytest.fixture(scope="module")
def rationales(embedder: GraceEmbedder) -> list[Rationale]:
    return embedder.rationales(TEXTS)


@pytest.mark.parametrize("name", ["grace-nano", "grace-nano-base"])
def test_they_are_small_enough_to_ship_and_hold_no_code(name: str) -> None:
    files = [path for path in (MODELS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md"}


@pytest.mark.parametrize("name", ["grace-nano", "grace-nano-base"])
def test_they_load_in_stock_transformers_without_a_missing_or_spare_weight(name: str) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(MODELS / name, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    assert len(tokenizer) <= model.config.vocab_size
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert "auto_map" not in model.config.to_dict()


@pytest.mark.parametrize("text", HARD + TEXTS[:1], ids=lambda text: ascii(text[:20]))
def test_its_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_its_markup_tokens_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    for markup in ("<think>", "</think>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer(markup, add_special_tokens=False)["input_ids"]) == 1, markup
    assert tokenizer.eos_token == "<|im_end|>"


def test_its_rationales_reason_inside_think_tags_state_something_and_end(rationales: list[Rationale]) -> None:
    for text, rationale in zip(TEXTS, rationales, strict=True):
        assert not rationale.truncated, text
        assert rationale.text.count("<think>") == 1 == rationale.text.count("</think>"), rationale.text
        assert len(rationale.reasoning.split()) >= 3 and len(rationale.summary.split()) >= 2, rationale.text


def test_its_rationales_differ_from_text_to_text(rationales: list[Rationale]) -> None:
    assert len({rationale.text for rationale in rationales}) == len(TEXTS)


def test_they_read_and_prompt_alike() -> None:
    """The trained weights are the only difference, so that whoever trains again starts from the same tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "grace_config.json"):
        assert (NANO / name).read_bytes() == (MODELS / "grace-nano-base" / name).read_bytes(), name


def test_it_is_the_default_model(embedder: GraceEmbedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (8, embedder.get_embedding_dimension()) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert Path(resolve_model("grace-nano")) == NANO
    assert embedder.model_card_data.model_name == "grace-nano" == embedder.fingerprint().model


def test_a_question_is_nearer_to_its_answer_than_to_anything_else(embedder: GraceEmbedder) -> None:
    pairs = {
        "Why do tides follow the moon?": "The moon's gravity pulls on the oceans and raises the tides.",
        "How do vaccines protect against viruses?": "Vaccines train the immune system to recognise a virus.",
        "What is dark matter?": "Dark matter is unseen mass that holds galaxies together.",
    }
    scores = embedder.encode_query(list(pairs)) @ embedder.encode_document(list(pairs.values())).T
    assert scores.argmax(1).tolist() == [0, 1, 2]
