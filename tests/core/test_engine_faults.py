"""The engine when memory runs out, numbers overflow, weights change, threads meet or a caller goes away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import EngineError, NonFiniteEmbeddingError, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.identity import hash_weights, weights_version

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]

PREFIX = (700, 701, 702, 703, 704)
END_TOKENS = range(40)


def made_requests(lengths: Sequence[int] = (20, 18, 16, 14, 12, 10, 8, 6), budget: int = 12) -> list[RationaleRequest]:
    rng = np.random.default_rng(5)
    return [
        RationaleRequest(
            input_ids=(*PREFIX, *rng.integers(40, 700, length).tolist()),
            prefix_length=len(PREFIX),
            max_new_tokens=budget,
        )
        for length in lengths
    ]


def run(engine: TransformersEngine, requests: Sequence[RationaleRequest]) -> list[RationaleOutput]:
    pairs = list(engine.run(requests))
    assert sorted(index for index, _ in pairs) == list(range(len(requests))), "every text once"
    return [output for _, output in sorted(pairs, key=lambda pair: pair[0])]


def assert_same(ones: Sequence[RationaleOutput], others: Sequence[RationaleOutput], atol: float = 1e-5) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        np.testing.assert_allclose(one.vector, other.vector, atol=atol)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@contextmanager
def memory_for(
    model: PreTrainedModel, most_tokens: int, error: BaseException = OUT_OF_MEMORY[0]
) -> Iterator[list[int]]:
    """A machine whose memory holds so many tokens of a forward pass; gives the sizes that were tried."""
    tried: list[int] = []

    def allocate(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tried.append(kwargs["input_ids"].numel())
        if tried[-1] > most_tokens:
            raise error

    hook = model.base_model.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()


class TestOutOfMemory:
    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("most_tokens", [20, 41, 60])
    def test_the_batch_is_halved_until_it_fits_and_every_text_is_there(
        self, make_model: MakeModel, caplog: pytest.LogCaptureFixture, error: BaseException, most_tokens: int
    ) -> None:
        model, requests = make_model("llama"), made_requests()
        engine = TransformersEngine(model, end_tokens=END_TOKENS)
        expected = run(engine, requests)
        with memory_for(model, most_tokens, error) as tried:
            assert_same(run(engine, requests), expected)
        assert sum(size > most_tokens for size in tried) >= 1
        assert "Out of memory with 8 texts in a batch; going on with half." in caplog.text
        assert_same(run(engine, requests), expected)

    def test_texts_that_were_finished_before_are_not_written_again(self, make_model: MakeModel) -> None:
        model, requests = make_model("llama"), made_requests()
        engine = TransformersEngine(model, end_tokens=END_TOKENS, draft=False)
        expected = run(engine, requests)
        lengths = sorted(len(output.token_ids) for output in expected)
        assert lengths[0] < lengths[-1]
        calls = 0

        def fail_once(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 1 + lengths[0] + 2:  # prompts, the shortest rationale and its end, and one more
                raise OUT_OF_MEMORY[0]

        written = engine.statistics()["new_tokens"]
        hook = model.base_model.register_forward_pre_hook(fail_once)
        assert_same(run(engine, requests), expected)
        hook.remove()
        assert calls > 1 + lengths[0] + 2
        assert engine.statistics()["new_tokens"] - written == sum(lengths)

    @pytest.mark.parametrize("name", ["llama", "gemma2"])
    def test_a_text_that_is_too_large_alone_is_an_error_with_the_mend(self, make_model: MakeModel, name: str) -> None:
        model = make_model(name)
        engine = TransformersEngine(model, end_tokens=END_TOKENS)
        requests = made_requests([30, 200, 8])
        run(engine, requests[:1])
        with (
            memory_for(model, 60),
            pytest.raises(
                EngineError, match=r"205 tokens .* up to 12 .* Lower max_seq_length or max_new_tokens"
            ) as caught,
        ):
            list(engine.run(requests))
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
        assert_same(run(engine, requests), run(TransformersEngine(model, end_tokens=END_TOKENS), requests))

    def test_other_errors_are_not_taken_for_a_lack_of_memory(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        engine = TransformersEngine(model, end_tokens=END_TOKENS)
        run(engine, made_requests())
        with memory_for(model, 20, RuntimeError("a bug of its own")), pytest.raises(RuntimeError, match="of its own"):
            run(engine, made_requests())


class TestOverflow:
    @pytest.fixture
    def overflowing(self, make_model: MakeModel) -> PreTrainedModel:
        """A float16 policy whose residual stream passes 65,504 at token 99, and nowhere else."""
        model = make_model("llama", dtype=torch.float16)
        with torch.no_grad():
            model.get_input_embeddings().weight[99] = 65_000.0
            for layer in model.model.layers:
                layer.mlp.down_proj.weight *= 1000
        return model

    @pytest.mark.parametrize("budget", [0, 5])
    def test_a_text_that_overflows_half_precision_is_run_again_in_float32(
        self, overflowing: PreTrainedModel, caplog: pytest.LogCaptureFixture, budget: int
    ) -> None:
        plain, other = made_requests([9, 9], budget)
        bad = RationaleRequest(input_ids=(*plain.input_ids, 99, 50), prefix_length=5, max_new_tokens=budget)
        with torch.no_grad():
            states = overflowing.base_model(torch.tensor([bad.input_ids])).last_hidden_state
        assert not torch.isfinite(states).all(), "the model must overflow, or this test shows nothing"
        engine = TransformersEngine(overflowing, end_tokens=())
        outputs = run(engine, [plain, bad, other])
        assert caplog.text.count("NaN or infinity in float16; running this text again in float32.") == 1
        (expected,) = run(TransformersEngine(overflowing.float(), end_tokens=()), [bad])
        assert_same([outputs[1]], [expected])
        assert all(np.isfinite(output.vector).all() for output in outputs)

    @pytest.mark.parametrize("name", ["llama", "gemma2"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nan_in_float32_is_an_error(
        self, make_model: MakeModel, name: str, dtype: torch.dtype, temperature: float
    ) -> None:
        model = make_model(name, dtype=dtype)
        with torch.no_grad():
            model.base_model.norm.weight[3] = float("nan")
        engine = TransformersEngine(model, end_tokens=())
        with pytest.raises(NonFiniteEmbeddingError, match=r"25 tokens, in float32.*weights are probably damaged"):
            list(engine.run(made_requests(), SamplingOptions(temperature=temperature)))


def _add(model: PreTrainedModel, change: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(change)


def _add_to_data(model: PreTrainedModel, change: float) -> None:
    """As peft merges adapters, and as many an optimiser steps: autograd's version counter sees nothing of it."""
    for parameter in model.parameters():
        parameter.data += change


def _replace_data(model: PreTrainedModel, change: float) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data + change


def _step(model: PreTrainedModel, change: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -change)
    optimizer.step()
    optimizer.zero_grad()


def _load(model: PreTrainedModel, change: float) -> None:
    model.load_state_dict({name: tensor + change for name, tensor in model.state_dict().items()})


def _load_and_assign(model: PreTrainedModel, change: float) -> None:
    model.load_state_dict({name: tensor + change for name, tensor in model.state_dict().items()}, assign=True)


class TestWeights:
    @pytest.mark.parametrize(
        "change",
        [_add, _add_to_data, _replace_data, _step, _load, _load_and_assign],
        ids=lambda change: change.__name__,
    )
    def test_weights_that_change_in_place_change_vectors_and_identity(
        self, make_model: MakeModel, change: Callable[[PreTrainedModel, float], None]
    ) -> None:
        model, fresh, requests = make_model("llama"), make_model("llama"), made_requests(budget=4)
        engine = TransformersEngine(model, end_tokens=())
        before = run(engine, requests)
        version, content = weights_version(model), hash_weights(model)
        assert (version, content) == (weights_version(model), hash_weights(model))
        change(model, 0.02)
        _add(fresh, 0.02)
        after = run(engine, requests)
        assert weights_version(model) != version and hash_weights(model) != content
        assert_same(after, run(TransformersEngine(fresh, end_tokens=()), requests))
        assert np.abs(after[0].vector - before[0].vector).max() > 1e-3

    def test_the_identity_of_weights_is_their_content(self, make_model: MakeModel) -> None:
        model, same = make_model("llama"), make_model("llama")
        assert hash_weights(model) == hash_weights(same) != hash_weights(make_model("llama", seed=1))
        assert hash_weights(same.bfloat16()) != hash_weights(model)

    def test_a_model_made_in_inference_mode_works(self, make_model: MakeModel) -> None:
        with torch.inference_mode():
            model = make_model("llama")
        assert any(parameter.is_inference() for parameter in model.parameters())
        requests = made_requests()
        expected = run(TransformersEngine(make_model("llama"), end_tokens=END_TOKENS), requests)
        assert_same(run(TransformersEngine(model, end_tokens=END_TOKENS), requests), expected)

    def test_another_dtype_is_seen(self, make_model: MakeModel) -> None:
        model, requests = make_model("llama"), made_requests()
        engine = TransformersEngine(model, end_tokens=END_TOKENS)
        run(engine, requests)
        model.bfloat16()
        again = run(engine, requests)
        assert engine.dtype == "bfloat16"
        assert_same(again, run(TransformersEngine(model, end_tokens=END_TOKENS), requests))


class TestManners:
    def test_dropout_is_off_and_training_mode_comes_back(self, make_model: MakeModel) -> None:
        model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
        requests = made_requests()
        expected = run(TransformersEngine(model, end_tokens=END_TOKENS), requests)
        model.train()
        engine = TransformersEngine(model, end_tokens=END_TOKENS)
        assert_same(run(engine, requests), expected)
        assert model.training and model.transformer.h[0].mlp.dropout.training
        begun = engine.run(requests)
        next(begun)
        assert not model.training
        begun.close()  # type: ignore[attr-defined]
        assert model.training
        with memory_for(model, 1, RuntimeError("a bug")), pytest.raises(RuntimeError, match="a bug"):
            list(engine.run(requests))
        assert model.training

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_the_models_own_attention_comes_back(self, make_model: MakeModel, implementation: str) -> None:
        model, requests = make_model("llama"), made_requests()
        model.set_attn_implementation(implementation)
        ids = torch.tensor([requests[0].input_ids])
        with torch.no_grad():
            before = model(ids).logits
            engine = TransformersEngine(model, end_tokens=END_TOKENS, max_batch_rows=2)
            for _ in engine.run(requests):  # the caller may use the model while results come
                assert model.config._attn_implementation == implementation
                torch.testing.assert_close(model(ids).logits, before)
        assert not model.base_model._forward_hooks

    def test_a_caller_may_use_the_engine_between_two_results(self, make_model: MakeModel) -> None:
        model, requests = make_model("llama"), made_requests()
        engine = TransformersEngine(model, end_tokens=END_TOKENS, max_batch_rows=3)
        expected = run(engine, requests)
        found = {}
        for index, output in engine.run(requests):
            found[index] = output
            assert_same(run(engine, requests[index : index + 1]), expected[index : index + 1])
        assert_same([found[index] for index in range(len(requests))], expected)

    def test_results_need_no_gradients_and_leave_none(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        with torch.enable_grad():
            run(TransformersEngine(model, end_tokens=END_TOKENS), made_requests())
            assert torch.is_grad_enabled()
            model(
                torch.tensor([[1, 2, 3]])
            ).logits.sum().backward()  # no tensor of the model became an inference tensor
        assert all(parameter.grad is not None for parameter in model.base_model.parameters())

    def test_threads_share_an_engine(self, make_model: MakeModel) -> None:
        model = make_model("llama")
        engine = TransformersEngine(model, end_tokens=END_TOKENS, max_batch_rows=2)
        requests = made_requests()
        expected = run(TransformersEngine(model, end_tokens=END_TOKENS), requests)
        start = threading.Barrier(8)

        def work(first: int) -> list[RationaleOutput]:
            start.wait()
            return run(engine, requests[first:])

        with ThreadPoolExecutor(8) as pool:
            for first, found in enumerate(pool.map(work, range(8))):
                assert_same(found, expected[first:])
        assert engine.statistics()["texts"] == sum(range(1, 9))

    def test_the_fall_back_to_one_text_at_a_time_is_said_once(
        self, make_model: MakeModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = TransformersEngine(make_model("bloom"), end_tokens=END_TOKENS)
        with caplog.at_level(logging.WARNING, logger="grace_retrieval"):
            run(engine, made_requests())
            run(engine, made_requests())
        ours = [record for record in caplog.records if record.name.startswith("grace_retrieval")]
        assert len(ours) == 1 and "BloomForCausalLM cannot run in batches of ragged rows" in ours[0].getMessage()
