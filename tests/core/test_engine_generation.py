"""How rationales are written: drafts, sampling, budgets, ends, and a system prefix that is run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import InputError, RationaleEngine, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.sampling import choose_tokens
from grace_retrieval.engines.transformers import SHARED_PREFIXES, TransformersEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]

PREFIX = (700, 701, 702, 703, 704)
CYCLE = 50


def run(
    engine: TransformersEngine, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
) -> list[RationaleOutput]:
    found = dict(engine.run(requests, sampling))
    assert len(found) == len(requests)
    return [found[index] for index in range(len(requests))]


def request(*body: int, budget: int = 40, prefix: tuple[int, ...] = PREFIX) -> RationaleRequest:
    return RationaleRequest(input_ids=(*prefix, *body), prefix_length=len(prefix), max_new_tokens=budget)


def random_requests(count: int = 8, length: int = 20, budget: int = 30) -> list[RationaleRequest]:
    rng = np.random.default_rng(3)
    return [request(*rng.integers(40, 700, length).tolist(), budget=budget) for _ in range(count)]


@contextmanager
def fed_tokens(model: PreTrainedModel) -> Iterator[list[int]]:
    """Number of tokens of every forward pass of the base model."""
    fed: list[int] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield fed
    finally:
        hook.remove()


@pytest.fixture
def counting_model(make_model: MakeModel) -> PreTrainedModel:
    """A policy whose greedy choice is known: token t is followed by t + 1, and the last of the cycle by the first."""
    model = make_model("llama", pad_token_id=None)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.get_input_embeddings().weight
        embedding /= embedding.norm(dim=1, keepdim=True)
        head = model.get_output_embeddings().weight
        head.zero_()
        for token in range(CYCLE):
            head[(token + 1) % CYCLE] = embedding[token]
    return model


class TestDrafts:
    def test_a_policy_that_copies_its_text_writes_the_same_in_far_fewer_passes(
        self, counting_model: PreTrainedModel
    ) -> None:
        text = [*range(10, CYCLE), *range(12)]
        requests = [request(*text[:30], 11, budget=25), request(*text, 30, budget=37), request(*text[5:], 20, budget=1)]
        expected = [tuple((r.input_ids[-1] + 1 + i) % CYCLE for i in range(r.max_new_tokens)) for r in requests]
        outputs, passes = {}, {}
        for draft in (True, False):
            engine = TransformersEngine(counting_model, end_tokens=(), draft=draft)
            run(engine, [request(1, budget=0)])  # the engine's own trial, and the prefix
            before = engine.statistics()["forward_passes"]
            outputs[draft] = run(engine, requests)
            passes[draft] = engine.statistics()["forward_passes"] - before
            assert [output.token_ids for output in outputs[draft]] == expected
        assert passes[False] == 1 + 37 + 1  # prompts, each token, and the last one, which is only pooled
        assert passes[True] <= passes[False] / 3
        for drafted, plain in zip(outputs[True], outputs[False], strict=True):
            np.testing.assert_allclose(drafted.vector, plain.vector, atol=1e-6)

    @pytest.mark.parametrize("end", [None, 12, 24, 25])
    @pytest.mark.parametrize("budget", [1, 2, 3, 7, 13, 14, 15])
    def test_a_draft_never_runs_over_an_end_token_or_the_budget(
        self, counting_model: PreTrainedModel, budget: int, end: int | None
    ) -> None:
        text = [*range(8, 40), 9, 10, 11]
        after = list(range(12, 12 + budget))
        kept = after[: after.index(end)] if end in after else after
        ends = () if end is None else (end,)
        drafted, plain = (
            run(TransformersEngine(counting_model, end_tokens=ends, draft=draft), [request(*text, budget=budget)])[0]
            for draft in (True, False)
        )
        assert drafted.token_ids == plain.token_ids == tuple(kept)
        assert drafted.finish_reason == plain.finish_reason == ("stop" if end in after else "length")
        np.testing.assert_allclose(drafted.vector, plain.vector, atol=1e-6)

    def test_drafts_that_are_wrong_change_nothing(self, counting_model: PreTrainedModel) -> None:
        # After every "5 6" stood a 30, after "6 7" a 31 ...: every draft begins with a wrong token.
        text = [token for start in range(1, 20) for token in (start, start + 1, 30 + start % 9)]
        (output,) = run(TransformersEngine(counting_model, end_tokens=()), [request(*text, 1, 2, budget=30)])
        assert output.token_ids == tuple(range(3, 33))

    @pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    def test_random_policies_write_the_same_with_and_without(
        self, make_model: MakeModel, name: str, temperature: float
    ) -> None:
        model = make_model(name)
        words = random_requests(6, 12)
        requests = [request(*r.input_ids[5:], *r.input_ids[5:], *r.input_ids[5:], budget=60) for r in words]
        sampling = SamplingOptions(temperature=temperature, top_k=3)
        drafted, plain = (
            run(TransformersEngine(model, end_tokens=range(20), draft=draft), requests, sampling)
            for draft in (True, False)
        )
        assert [output.token_ids for output in drafted] == [output.token_ids for output in plain]
        for one, other in zip(drafted, plain, strict=True):
            np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)


class TestSampling:
    @pytest.fixture
    def model(self, make_model: MakeModel) -> PreTrainedModel:
        return make_model("llama")

    def test_the_same_seed_gives_the_same_rationale_alone_and_in_any_batch_and_order(
        self, model: PreTrainedModel
    ) -> None:
        sampling, requests = SamplingOptions(temperature=1.0, seed=7), random_requests()
        whole = [
            output.token_ids for output in run(TransformersEngine(model, end_tokens=range(40)), requests, sampling)
        ]
        assert len({len(tokens) for tokens in whole}) > 2
        for rows in (1, 3):
            engine = TransformersEngine(model, end_tokens=range(40), max_batch_rows=rows)
            again = run(engine, requests[::-1], sampling)[::-1]
            assert [output.token_ids for output in again] == whole
        assert run(TransformersEngine(model, end_tokens=range(40)), requests[3:4], sampling)[0].token_ids == whole[3]

    def test_another_seed_gives_another_rationale(self, model: PreTrainedModel) -> None:
        engine, requests = TransformersEngine(model, end_tokens=()), random_requests()
        found = [
            [output.token_ids for output in run(engine, requests, SamplingOptions(temperature=1.0, seed=seed))]
            for seed in (0, 1, 2**40)
        ]
        for one, other, third in zip(*found, strict=True):
            assert one != other != third != one

    def test_samples_of_one_text_draw_from_streams_of_their_own(self, model: PreTrainedModel) -> None:
        engine, sampling = TransformersEngine(model, end_tokens=()), SamplingOptions(temperature=1.0, seed=7)
        (first, *_) = random_requests()
        found = run(engine, [replace(first, sample=sample) for sample in (0, 1, 2, 0)], sampling)
        assert len({output.token_ids for output in found}) == 3 and found[0].token_ids == found[3].token_ids
        assert found[0].token_ids == run(engine, [first], sampling)[0].token_ids

    def test_samples_share_their_prompt_and_keep_their_own_vectors(
        self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, sampling = TransformersEngine(model, end_tokens=()), SamplingOptions(temperature=1.0, seed=7)
        one, other, *_ = random_requests()
        requests = [replace(text, sample=sample) for sample in (0, 1, 2) for text in (one, other)]
        alone = [run(engine, [request], sampling)[0] for request in requests]
        fed: list[int] = []
        forward = engine._forward

        def counted(tokens: torch.Tensor, *args: Any) -> torch.Tensor:
            fed.append(len(tokens))
            return forward(tokens, *args)

        monkeypatch.setattr(engine, "_forward", counted)
        for together, single in zip(run(engine, requests, sampling), alone, strict=True):
            assert together.token_ids == single.token_ids
            np.testing.assert_allclose(together.vector, single.vector, atol=1e-5)
        prompts = sum(len(text.input_ids) - text.prefix_length - 1 for text in (one, other))
        assert sum(fed) == prompts, "each prompt is run once, without its last token"

    def test_the_end_token_that_was_chosen_is_told(self, model: PreTrainedModel) -> None:
        ends = frozenset(range(300))
        for output in run(TransformersEngine(model, end_tokens=sorted(ends)), random_requests()):
            assert (output.end_token in ends) if output.finish_reason == "stop" else output.end_token is None

    def test_texts_that_would_be_alike_to_the_policy_draw_from_streams_of_their_own(
        self, counting_model: PreTrainedModel
    ) -> None:
        requests = [request(first, 3, budget=12) for first in range(10, 30)]  # only the last token matters to it
        engine = TransformersEngine(counting_model, end_tokens=())
        outputs = run(engine, requests, SamplingOptions(temperature=10.0))
        assert len({output.token_ids for output in outputs}) == len(requests)

    @pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}], ids=str)
    def test_sampling_among_one_token_is_greedy(self, model: PreTrainedModel, options: dict[str, Any]) -> None:
        engine, requests = TransformersEngine(model, end_tokens=()), random_requests()
        greedy = [output.token_ids for output in run(engine, requests)]
        sampled = run(engine, requests, SamplingOptions(**{"temperature": 1.0, **options}))
        assert [output.token_ids for output in sampled] == greedy

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (7, 0.8)])
    def test_tokens_are_drawn_with_their_probabilities(self, temperature: float, top_k: int, top_p: float) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(size=12) * 2
        expected = np.exp(logits / temperature)
        order = np.argsort(-expected)
        if top_k:
            expected[order[top_k:]] = 0
        expected /= expected.sum()
        before = np.cumsum(expected[order]) - expected[order]  # probability of all better tokens
        expected[order[before >= top_p]] = 0
        expected /= expected.sum()
        draws = 20_000
        tokens = choose_tokens(
            torch.tensor(logits).repeat(draws, 1),
            SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p),
            (np.arange(draws) + 0.5) / draws,
        )
        np.testing.assert_allclose(np.bincount(tokens, minlength=12) / draws, expected, atol=2e-4)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("temperature", -0.1),
            ("temperature", 11),
            ("temperature", float("nan")),
            ("temperature", "hot"),
            ("top_p", 0.0),
            ("top_p", 1.5),
            ("top_p", "all"),
            ("top_k", -1),
            ("top_k", 1.5),
            ("seed", -1),
            ("seed", 1.5),
            ("seed", "seven"),
        ],
    )
    def test_an_option_out_of_range_is_refused_by_name_and_value(self, option: str, value: object) -> None:
        with pytest.raises(InputError, match=rf"^{option}={value!r}: give "):
            SamplingOptions(**{option: value})  # type: ignore[arg-type]


class TestEndsAndBudgets:
    def test_an_end_token_at_once_gives_an_empty_rationale(self, make_model: MakeModel) -> None:
        model = make_model("qwen2")
        asked = random_requests(1)[0]
        (first,) = run(TransformersEngine(model, end_tokens=()), [replace(asked, max_new_tokens=1)])
        engine = TransformersEngine(model, end_tokens=first.token_ids)
        (output,) = run(engine, [asked])
        assert (output.token_ids, output.finish_reason) == ((), "stop")
        (bare,) = run(engine, [replace(asked, max_new_tokens=0)])
        assert (bare.token_ids, bare.finish_reason) == ((), "given")
        np.testing.assert_allclose(output.vector, bare.vector, atol=1e-6)

    def test_a_given_rationale_is_pooled_as_it_is_even_with_end_tokens_in_it(self, make_model: MakeModel) -> None:
        engine = TransformersEngine(make_model("qwen2"), end_tokens=(9,))
        asked = replace(random_requests(1)[0], max_new_tokens=0)
        (given,) = run(engine, [replace(asked, rationale_ids=(8, 9, 10))])
        assert (given.token_ids, given.finish_reason) == ((8, 9, 10), "given")
        (longer,) = run(engine, [replace(asked, input_ids=(*asked.input_ids, 8, 9, 10))])
        np.testing.assert_allclose(given.vector, longer.vector, atol=1e-6)

    def test_given_and_written_rationales_and_none_share_a_batch(self, make_model: MakeModel) -> None:
        engine = TransformersEngine(make_model("qwen2"), end_tokens=range(40))
        written, bare, given = random_requests(3)
        asked = [written, replace(bare, max_new_tokens=0), replace(given, max_new_tokens=0, rationale_ids=(1, 2, 3))]
        for one, together in zip([run(engine, [r])[0] for r in asked], run(engine, asked), strict=True):
            assert (one.token_ids, one.finish_reason) == (together.token_ids, together.finish_reason)
            np.testing.assert_allclose(one.vector, together.vector, atol=1e-6)

    def test_each_request_has_its_own_budget(self, counting_model: PreTrainedModel) -> None:
        budgets = [3, 0, 17, 1, 8, 40, 2]
        outputs = run(TransformersEngine(counting_model, end_tokens=()), [request(3, 4, budget=b) for b in budgets])
        assert [output.token_ids for output in outputs] == [tuple(i % CYCLE for i in range(5, 5 + b)) for b in budgets]

    def test_longest_texts_come_first_and_none_is_left_out(self, make_model: MakeModel) -> None:
        engine = TransformersEngine(make_model("qwen2"), end_tokens=(), max_batch_rows=1)
        lengths = [3, 50, 9, 20, 1]
        order = [index for index, _ in engine.run([request(*range(40, 40 + n), budget=2) for n in lengths])]
        assert order == [1, 3, 2, 0, 4]
        assert list(engine.run([])) == []


class TestSharedPrefix:
    def test_the_prefix_is_run_once_for_all_texts_and_calls(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        engine = TransformersEngine(model, end_tokens=())
        run(engine, [request(1, budget=0, prefix=(9, 9))])  # the engine's own trial
        requests = random_requests(9, 20, budget=0)
        with fed_tokens(model) as fed:
            run(engine, requests)
        assert fed == [len(PREFIX), 9 * 20]
        with fed_tokens(model) as fed:
            run(engine, requests[:4])
            run(engine, requests[4:])
        assert fed == [4 * 20, 5 * 20]

    def test_nothing_is_run_twice_from_prompt_to_vector(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        engine = TransformersEngine(model, end_tokens=(), draft=False)
        requests = [request(*range(50, 50 + n), budget=b) for n, b in [(20, 9), (3, 30), (11, 1)]]
        run(engine, requests)
        counted = dict(engine.statistics())
        with fed_tokens(model) as fed:
            run(engine, requests)
        assert sum(fed) == (20 + 9) + (3 + 30) + (11 + 1), "each token of text and rationale, once"
        assert engine.statistics()["forward_passes"] - counted["forward_passes"] == len(fed)
        assert engine.statistics()["texts"] == 2 * counted["texts"] == 6
        assert engine.statistics()["prompt_tokens"] == 2 * (20 + 3 + 11)
        assert engine.statistics()["new_tokens"] == 2 * (9 + 30 + 1)

    def test_more_prefixes_than_are_kept_stay_right(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        engine = TransformersEngine(model, end_tokens=())
        prefixes = [(700 + i, 5, 6) for i in range(SHARED_PREFIXES + 2)]
        requests = [request(50 + i % 3, 60, budget=3, prefix=prefix) for i, prefix in enumerate(prefixes * 2)]
        for asked, output in zip(requests, run(engine, requests), strict=True):
            (alone,) = run(TransformersEngine(model, end_tokens=()), [asked])
            assert alone.token_ids == output.token_ids
            np.testing.assert_allclose(alone.vector, output.vector, atol=1e-5)


class TestProtocol:
    def test_the_engine_keeps_the_protocol(self, make_model: MakeModel) -> None:
        engine = TransformersEngine(make_model("qwen2", dtype=torch.bfloat16), end_tokens=())
        assert isinstance(engine, RationaleEngine)
        assert (engine.family, engine.dtype) == ("transformers", "bfloat16")

    @pytest.mark.parametrize("limit", ["max_batch_tokens", "max_batch_rows"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_a_limit_that_is_not_positive_is_refused(self, make_model: MakeModel, limit: str, value: int) -> None:
        with pytest.raises(InputError, match=f"{limit}={value}: give a positive number"):
            TransformersEngine(make_model("qwen2"), end_tokens=(), **{limit: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "arguments",
        [
            {"input_ids": (), "prefix_length": 0},
            {"input_ids": (1, 2), "prefix_length": 2},
            {"input_ids": (1, 2), "prefix_length": -1},
            {"input_ids": (1, 2), "prefix_length": 1, "max_new_tokens": -1},
        ],
        ids=str,
    )
    def test_a_request_with_nothing_to_pool_is_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"at least one token|max_new_tokens=-1: give 0 or more"):
            RationaleRequest(**arguments)
