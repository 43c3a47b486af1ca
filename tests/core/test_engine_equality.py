"""One pass equals two: vectors and tokens against published numbers, stock transformers and a second forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grace_retrieval import RationaleOutput, RationalePrompt, RationaleRequest, SamplingOptions
from grace_retrieval.engines.plain import run_plain
from grace_retrieval.engines.transformers import TransformersEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]

RAGGED = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral", "gemma3", "granite"]
# Soft-capping, ALiBi, state space; and three whose own attention runs in a ragged batch, but wrongly or not always.
ONE_BY_ONE = ["gemma2", "bloom", "mamba", "gptj", "opt", "gpt_neo"]
END_TOKENS = tuple(range(40))  # so many that random models end some rationales early
PREFIX = 11


def made_requests(budgets: Sequence[int] = (20, 7, 25, 30, 0, 1, 40), *, seed: int = 1) -> list[RationaleRequest]:
    """Requests of one prefix and of 1 to 60 tokens behind it."""
    rng = np.random.default_rng(seed)
    prefix = tuple(rng.integers(40, 760, PREFIX).tolist())
    lengths = [3, 30, 1, 60, 12, 25, 9]
    return [
        RationaleRequest(
            input_ids=prefix + tuple(rng.integers(40, 760, length).tolist()),
            prefix_length=PREFIX,
            max_new_tokens=budget,
        )
        for length, budget in zip(lengths, budgets, strict=True)
    ]


def run(engine: TransformersEngine, requests: Sequence[RationaleRequest]) -> list[RationaleOutput]:
    pairs = list(engine.run(requests))
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    return [output for _, output in sorted(pairs, key=lambda pair: pair[0])]


def second_pass(model: PreTrainedModel, request: RationaleRequest, rationale: Sequence[int]) -> np.ndarray:
    """Pooled vector by the stock model's own report of its hidden states."""
    with torch.no_grad():
        output = model(torch.tensor([[*request.input_ids, *rationale]]), output_hidden_states=True)
    return output.hidden_states[-1][0, request.prefix_length :].double().mean(0).numpy()


def stock_generate(model: PreTrainedModel, request: RationaleRequest) -> Any:
    return model.generate(
        torch.tensor([request.input_ids]),
        attention_mask=torch.ones(1, len(request.input_ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=list(END_TOKENS),
        pad_token_id=0,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def published(fixtures_dir: Path) -> dict[str, Any]:
    return json.loads((fixtures_dir / "tiny-policy-embeddings.json").read_text())


@pytest.fixture(scope="module")
def policy(tiny_policy: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)


@pytest.fixture(scope="module")
def requests(tiny_policy: Path, published: dict[str, Any]) -> list[RationaleRequest]:
    prompt = RationalePrompt(AutoTokenizer.from_pretrained(tiny_policy), published["system_prompt"])
    rendered = prompt.render([case["text"] for case in published["cases"]])
    rationales = prompt.rationale_ids([case["rationale"] for case in published["cases"]])
    assert {text.prefix_length for text in rendered} == {published["prefix_tokens_excluded"]}
    return [
        RationaleRequest(input_ids=text.input_ids, prefix_length=text.prefix_length, rationale_ids=rationale)
        for text, rationale in zip(rendered, rationales, strict=True)
    ]


@pytest.mark.parametrize(
    "batches",
    [
        {"max_batch_rows": 1},
        {"max_batch_rows": 2},
        {"max_batch_rows": 3},
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 700},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 2, 5, 0, 3, 1, 4), (3,), (5, 5, 5, 6)], ids=str)
def test_given_rationales_give_the_published_embeddings_in_any_batch(
    published: dict[str, Any],
    policy: PreTrainedModel,
    requests: list[RationaleRequest],
    batches: dict[str, int],
    order: tuple[int, ...],
) -> None:
    engine = TransformersEngine(policy, end_tokens=[765], **batches)  # type: ignore[arg-type]
    for place, output in zip(order, run(engine, [requests[i] for i in order]), strict=True):
        np.testing.assert_allclose(unit(output.vector), published["cases"][place]["embedding"], atol=1e-5)
        assert output.finish_reason == "given" and output.token_ids == requests[place].rationale_ids
        assert output.vector.dtype == np.float32 and output.vector.shape == (32,)


def test_the_plain_way_gives_the_published_embeddings(
    published: dict[str, Any], policy: PreTrainedModel, requests: list[RationaleRequest]
) -> None:
    for request, case in zip(requests, published["cases"], strict=True):
        output = run_plain(policy, request, SamplingOptions(), frozenset([765]))
        np.testing.assert_allclose(unit(output.vector), case["embedding"], atol=1e-5)


def test_the_embedder_gives_the_published_embeddings(
    published: dict[str, Any], make_embedder: Callable[..., Any]
) -> None:
    embedder = make_embedder(system_prompt=published["system_prompt"])
    found = embedder.encode(
        [case["text"] for case in published["cases"]],
        rationales=[case["rationale"] for case in published["cases"]],
    )
    np.testing.assert_allclose(found, [case["embedding"] for case in published["cases"]], atol=1e-5)


@pytest.mark.parametrize("draft", [True, False], ids=["drafts", "no drafts"])
@pytest.mark.parametrize("name", RAGGED + ONE_BY_ONE)
def test_tokens_equal_stock_generate_and_vectors_equal_a_second_pass(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture, name: str, draft: bool
) -> None:
    model, requests = make_model(name), made_requests()
    outputs = run(TransformersEngine(model, end_tokens=END_TOKENS, draft=draft), requests)
    assert ("one text at a time" in caplog.text) == (name in ONE_BY_ONE)
    assert len({len(output.token_ids) for output in outputs}) > 3, "rationales must be ragged to test anything"
    for request, output in zip(requests, outputs, strict=True):
        np.testing.assert_allclose(output.vector, second_pass(model, request, output.token_ids), atol=1e-5)
        if not request.max_new_tokens:
            assert (output.finish_reason, output.token_ids) == ("given", ())
            continue
        stock = stock_generate(model, request)
        tokens = stock.sequences[0, len(request.input_ids) :].tolist()
        ended = tokens[-1] in END_TOKENS
        assert output.finish_reason == ("stop" if ended else "length")
        assert output.token_ids == tuple(tokens[:-1] if ended else tokens)
        if ended and name != "mamba":  # every pooled token was fed while generating, so its states are known
            seen = torch.cat([step[-1][0] for step in stock.hidden_states])[request.prefix_length :]
            np.testing.assert_allclose(output.vector, seen.double().mean(0).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_text_gets_the_same_rationale_and_vector_alone_and_in_any_batch(make_model: MakeModel, name: str) -> None:
    model, requests = make_model(name), made_requests()
    alone = [run(TransformersEngine(model, end_tokens=END_TOKENS), [request])[0] for request in requests]
    for options in ({}, {"max_batch_rows": 3}, {"max_batch_tokens": 150}):
        together = run(TransformersEngine(model, end_tokens=END_TOKENS, **options), requests[::-1])[::-1]  # type: ignore[arg-type]
        for one, other in zip(alone, together, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mistral", "gemma3", "gemma2", "bloom"])
def test_bfloat16_stays_within_its_tolerance_of_a_second_pass(make_model: MakeModel, name: str) -> None:
    model = make_model(name, dtype=torch.bfloat16)
    requests = made_requests()
    for request, output in zip(requests, run(TransformersEngine(model, end_tokens=END_TOKENS), requests), strict=True):
        assert output.vector.dtype == np.float32
        expected = second_pass(model, request, output.token_ids)
        np.testing.assert_allclose(unit(output.vector), unit(expected), atol=2e-2)


def test_rope_that_depends_on_the_length_is_not_changed_by_longer_texts_in_the_batch(make_model: MakeModel) -> None:
    model = make_model("phi3")  # longrope: other frequencies for sequences of more than 48 tokens
    requests = [
        RationaleRequest(input_ids=r.input_ids, prefix_length=PREFIX, rationale_ids=(100, 200, 300))
        for r in made_requests()
    ]
    lengths = [len(r.input_ids) + 3 for r in requests]
    assert min(lengths) < 48 < max(lengths)
    for request, output in zip(requests, run(TransformersEngine(model, end_tokens=END_TOKENS), requests), strict=True):
        np.testing.assert_allclose(output.vector, second_pass(model, request, (100, 200, 300)), atol=1e-5)


def test_a_prefix_of_nothing_and_a_prefix_of_all_but_one_token(make_model: MakeModel) -> None:
    model = make_model("qwen2")
    ids = made_requests()[1].input_ids
    requests = [
        RationaleRequest(input_ids=ids, prefix_length=length, max_new_tokens=budget)
        for length in (0, len(ids) - 1)
        for budget in (0, 12)
    ]
    for request, output in zip(requests, run(TransformersEngine(model, end_tokens=()), requests), strict=True):
        assert len(output.token_ids) == request.max_new_tokens
        np.testing.assert_allclose(output.vector, second_pass(model, request, output.token_ids), atol=1e-5)


def test_a_position_beyond_the_sliding_window_does_not_see_the_prefix(make_model: MakeModel) -> None:
    """Guards the test models themselves: with a window of 9 the early tokens must matter less than without."""
    narrow, wide = make_model("mistral"), make_model("mistral", sliding_window=None)
    wide.load_state_dict(narrow.state_dict())
    request = made_requests()[3]
    engines = [TransformersEngine(model, end_tokens=END_TOKENS) for model in (narrow, wide)]
    one, other = (run(engine, [request])[0] for engine in engines)
    assert np.abs(one.vector - other.vector).max() > 0.01
