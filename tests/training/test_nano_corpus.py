"""Tests of the corpus, packing, schedule and fast loss behind grace-nano-base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from grace_nano.cleaning import clean_explanation, detokenize, first_sentences, split_sentences
from grace_nano.encoding import ChatEncoder
from grace_nano.evaluate import format_rates
from grace_nano.model import FastLoss, _chunk_loss, build_model
from grace_nano.packing import BatchStream, Mixture, fill_row, make_batch
from grace_nano.rationale import (
    ChatExample,
    RationaleParts,
    copied_share,
    format_rationale,
    trim_rationale,
)
from grace_nano.recipe import RationaleRecipe, load_recipe
from grace_nano.repeats import repeat_candidates
from grace_nano.schedule import learning_rate_factor
from grace_nano.sources import drop_leaks
from grace_nano.store import CONTEXT, RATIONALE, TEXT, ExampleStore
from grace_nano.tokenizer import save_tokenizer, train_tokenizer
from grace_retrieval.prompt import DEFAULT_PROMPT, DOCUMENT_PROMPT, QUERY_PROMPT

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "grace-nano-base.yaml"


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The cat sat on the mat, and the dog sat on the cat. " * 4], 300)


def test_rationale_has_the_exact_form():
    parts = RationaleParts(
        ("Cats are studied too rarely. More text.", "Dogs are counted in ten towns."), "Most cats sleep."
    )
    assert trim_rationale(parts, count_words, 50, 60) == (
        "<think> Cats are studied too rarely. Dogs are counted in ten towns. </think> Most cats sleep.<|im_end|>"
    )


@pytest.mark.parametrize(("target", "expected"), [(16, 2), (11, 1)])
def test_trimming_leaves_out_whole_thoughts(target: int, expected: int):
    parts = RationaleParts(("One two three four.", "Five six seven eight."), "Nine ten eleven.")
    rationale = trim_rationale(parts, count_words, target, 30)
    assert rationale is not None
    assert count_words(rationale) <= target
    assert rationale.split("</think>")[0].count(".") == expected
    assert rationale.endswith("Nine ten eleven.<|im_end|>")


def test_too_long_or_unclean_material_gives_no_rationale():
    long = RationaleParts(("word " * 40 + "end.",), "A statement of some words.")
    assert trim_rationale(long, count_words, 10, 20) is None
    assert trim_rationale(RationaleParts(("",), "A statement of some words."), count_words, 10, 20) is None
    bullets = RationaleParts(("A thought of some words.",), "- first point - second point")
    assert trim_rationale(bullets, count_words, 30, 40) is None


def test_sentences_survive_abbreviations_and_initials():
    text = "We use masks, e.g. Gaussian ones, as in J. Doe et al. The error is 0.5 percent. It falls."
    sentences = split_sentences(text)
    assert " ".join(sentences) == text
    assert sentences[-1] == "It falls."
    assert not any(sentence.endswith("e.g.") for sentence in sentences)
    assert first_sentences("One two. Three four. Five.", 4) == "One two. Three four."
    assert first_sentences("One two three four five.", 4) is None
    assert first_sentences("no end at all", 10) is None


def test_cleaning():
    assert clean_explanation("The **method** works\nwell") == "The method works well."
    assert clean_explanation("1) first 2) second, as a list.") is None
    assert clean_explanation("Ein Maß für Größe und Übergröße öfter.") is None
    assert detokenize("Nix v. Hedden , 149 U.S. 304 ( 1893 ) , was `` odd '' .") == (
        'Nix v. Hedden, 149 U.S. 304 (1893), was "odd".'
    )


def test_leaks_are_found_by_id_version_and_title():
    train = pd.DataFrame({"id": ["1v1", "2", "3"], "title": ["A", "Same: Title", "C"]})
    held_out = pd.DataFrame({"id": ["1v3", "9"], "title": ["X", "same title"]})
    assert list(drop_leaks(train, held_out)["id"]) == ["3"]


def test_copied_share():
    assert copied_share(format_rationale("Graphs.", "Graphs cluster."), "graph clusters") == 1.0
    assert copied_share(format_rationale("Oceans.", "Whales."), "graph clusters") == 0.0


def test_schedule_warms_up_and_ends_at_zero():
    factors = [learning_rate_factor(fraction, 0.1, 0.4) for fraction in np.linspace(0, 1, 101)]
    assert factors[0] == 0.0
    assert max(factors) == 1.0
    assert factors[-1] == 0.0
    assert all(np.diff(factors[40:]) <= 0)


def test_recipe_loads_and_names_the_library_prompts():
    recipe = load_recipe(RECIPE)
    assert recipe.prompts == {"default": DEFAULT_PROMPT, "query": QUERY_PROMPT, "document": DOCUMENT_PROMPT}
    assert recipe.phase_at(0.0).name == "lm"
    assert recipe.phase_at(1.0).name == "chat"


def test_tokenizer_round_trip_and_chat_template(tokenizer, tmp_path: Path):
    save_tokenizer(tokenizer, tmp_path, 128)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " a  b\n\n\tc 1234 é漢🙂 <think> x </think> "
    assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text
    assert loaded.decode(loaded.encode("x<|im_end|>"), skip_special_tokens=True) == "x"
    assert len(loaded.encode("1234")) == 4


def test_chat_encoding_is_what_the_template_gives(tokenizer, tmp_path: Path):
    save_tokenizer(tokenizer, tmp_path, 128)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bounds = RationaleRecipe(
        target_tokens=200,
        max_tokens=200,
        min_overlap=0.0,
        short_text_characters=0,
        short_target_tokens=200,
        short_max_tokens=200,
    )
    encoder = ChatEncoder(tokenizer, {"document": "Read."}, bounds, 512)
    example = ChatExample("document", "The cat sat.", RationaleParts(("The cat is on the mat.",), "Cats and mats."))
    ((ids, kinds),) = list(encoder.encode([example]))
    messages = [{"role": "system", "content": "Read."}, {"role": "user", "content": "The cat sat."}]
    prompt = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = loaded.encode(prompt + "<think> The cat is on the mat. </think> Cats and mats.<|im_end|>")
    assert ids == whole
    assert loaded.decode([i for i, kind in zip(ids, kinds, strict=True) if kind == TEXT]) == "The cat sat."
    assert kinds.count(CONTEXT) == len(loaded.encode(prompt)) - len(loaded.encode("The cat sat."))
    assert kinds[-1] == RATIONALE


def make_store(lengths: list[int]) -> ExampleStore:
    return ExampleStore.build(([7] * length, [TEXT] * length) for length in lengths)


def test_rows_hold_whole_examples_with_fresh_positions():
    store = make_store([5, 3, 6, 2])
    rows = [fill_row([store[index] for index in range(4)], 8)]
    batch = make_batch(rows, 8, pad_id=0)
    assert [len(example) for example in rows[0]] == [5, 3]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.documents[0].tolist() == [0] * 5 + [1] * 3
    assert batch.kinds[0].tolist() == [0, 1, 1, 1, 1, 0, 1, 1]


def test_mixture_keeps_its_shares_and_resumes():
    stores = {"a": make_store([10] * 50), "b": make_store([30] * 50)}
    mixture = Mixture(stores, {"a": 3.0, "b": 1.0}, seed=1)
    tokens = {10: 0, 30: 0}
    for _ in range(400):
        length = len(mixture.draw())
        tokens[length] += length
    assert tokens[10] / tokens[30] == pytest.approx(3.0, rel=0.1)
    resumed = Mixture(stores, {"a": 3.0, "b": 1.0}, seed=1)
    resumed.positions.update(mixture.positions)
    assert resumed.positions == mixture.positions


def test_batches_have_constant_size_and_long_rows():
    rng = np.random.default_rng(0)
    stores = {"a": make_store([int(n) for n in rng.integers(4, 60, 300)])}
    stream = BatchStream(Mixture(stores, {"a": 1.0}, seed=0), (32, 64), 256, pad_id=0, pool_size=20)
    shapes = {stream.next_batch().ids.shape for _ in range(12)}
    assert shapes == {(8, 32), (4, 64)}


def test_fast_loss_is_the_loss_of_the_stock_model():
    options = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
    }
    model = build_model(options, vocab_size=50, eos_id=1, pad_id=0, seed=3)
    rng = np.random.default_rng(0)
    lengths = [9, 5, 12]
    store = ExampleStore.build((rng.integers(2, 50, n).tolist(), [TEXT] * n) for n in lengths)
    batch = make_batch([[store[0], store[1]], [store[2]]], 16, pad_id=0)
    weights = torch.from_numpy((batch.kinds > 0).astype(np.float32))
    loss, losses, chosen = FastLoss(model, compiled=False)(
        torch.from_numpy(batch.ids),
        torch.from_numpy(batch.documents),
        torch.from_numpy(batch.positions),
        weights,
    )
    loss.backward()
    gradient = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    total = torch.zeros(())
    for index in range(3):
        ids = torch.tensor(store[index].ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    stock = total / (sum(lengths) - 3)
    stock.backward()
    assert len(chosen) == len(losses) == sum(lengths) - 3
    assert float(loss.detach()) == pytest.approx(float(stock.detach()), rel=5e-3)
    expected = model.model.layers[0].mlp.up_proj.weight.grad
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.99


def test_a_toy_model_learns_in_a_few_steps():
    options = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
    }
    model = build_model(options, vocab_size=20, eos_id=1, pad_id=0, seed=0)
    store = ExampleStore.build(([5, 6, 7, 8] * 4, [TEXT] * 16) for _ in range(4))
    batch = make_batch([[store[index]] for index in range(4)], 16, pad_id=0)
    weights = torch.from_numpy((batch.kinds > 0).astype(np.float32))
    fast = FastLoss(model, compiled=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    values = []
    for _ in range(8):
        loss, _, _ = fast(
            torch.from_numpy(batch.ids),
            torch.from_numpy(batch.documents),
            torch.from_numpy(batch.positions),
            weights,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.5


def test_repeat_candidates_are_the_tokens_that_begin_a_circle():
    ids = torch.tensor([[3, 4, 9, 7, 8, 7, 5, 5, 7, 6]])
    kinds = torch.tensor([[1, 1, 1] + [RATIONALE] * 7])
    found = repeat_candidates(ids, torch.zeros_like(ids), kinds, torch.tensor([2, 6, 9]), window=8)
    assert set(found[0].tolist()) == {9}  # not in a rationale
    assert set(found[1].tolist()) == {5, 7, 8}  # the present 7, and the 8 that followed it before
    assert set(found[2].tolist()) == {6, 7, 8, 5}


def test_unlikelihood_gradient_is_that_of_its_formula():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, requires_grad=True)
    targets, weights = torch.tensor([1, 2]), torch.tensor([0.7, 0.3])
    unwanted = torch.zeros(2, 6)
    unwanted[0, 1], unwanted[0, 3], unwanted[1, 5] = 0.5, 0.5, 0.5
    _, gradient = _chunk_loss(logits.detach(), targets, weights, unwanted)
    log_shares = torch.log_softmax(logits, -1)
    loss = torch.nn.functional.nll_loss(log_shares, targets, reduction="none")
    unlikely = -0.5 * torch.log1p(-log_shares.exp())
    loss = loss + torch.stack((unlikely[0, 3], unlikely[1, 5]))
    (loss * weights).sum().backward()
    assert torch.allclose(gradient, logits.grad, atol=1e-6)


def test_format_rates():
    good = "<think> a b </think> c<|im_end|>"
    rates = format_rates([good, "<think> a b </think> c", "<think> a a a a a a a a"], "<|im_end|>")
    assert rates["closed"] == pytest.approx(2 / 3)
    assert rates["exact_form"] == pytest.approx(1 / 3)
    assert rates["looping"] == pytest.approx(1 / 3)
