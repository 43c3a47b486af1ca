"""The vLLM engine. A stand-in with vLLM's interface runs tiny models; the last test runs vLLM, where it is installed.

The full comparison with vLLM is benchmarks/programs/check_vllm.py, as vLLM needs an environment of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import (
    EngineError,
    GraceEmbedder,
    GraceIndex,
    InputError,
    MissingExtraError,
    ModelLoadError,
    NonFiniteEmbeddingError,
    RationaleOutput,
    RationaleRequest,
    SamplingOptions,
)
from grace_retrieval.engine import RationaleEngine
from grace_retrieval.engines import vllm as module
from grace_retrieval.engines.plain import run_plain
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.engines.vllm import VLLMEngine
from grace_retrieval.identity import hash_checkpoint, hash_weights
from grace_retrieval.indexing import Document, build_index
from grace_retrieval.sentences import sentence_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = (700, 701, 702, 703, 704)
END_TOKENS = range(40)


def made_requests(count: int = 6, budget: int = 10) -> list[RationaleRequest]:
    """Texts to write about, and behind them one with a given rationale and one for which none is wanted."""
    rng = np.random.default_rng(5)
    texts = [(*PREFIX, *rng.integers(40, 700, 5 + 3 * number).tolist()) for number in range(count + 2)]
    wanted: list[dict[str, Any]] = [{"max_new_tokens": budget - number % 3} for number in range(count)]
    wanted += [{"rationale_ids": (50, 60, 39, 70)}, {"max_new_tokens": 0}]
    return [
        RationaleRequest(input_ids=text, prefix_length=len(PREFIX), **options)
        for text, options in zip(texts, wanted, strict=True)
    ]


def outputs(engine: RationaleEngine, requests: Sequence[RationaleRequest], **kwargs: Any) -> list[RationaleOutput]:
    pairs = list(engine.run(requests, **kwargs))
    assert sorted(index for index, _ in pairs) == list(range(len(requests))), "every text once"
    return [output for _, output in sorted(pairs, key=lambda pair: pair[0])]


def assert_same(ones: Sequence[RationaleOutput], others: Sequence[RationaleOutput]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)


@dataclass
class StandIn:
    """What the stand-in for vLLM did, and what it is to do wrong."""

    events: list[str] = field(default_factory=list)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    params: list[Any] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    faults: dict[str, BaseException] = field(default_factory=dict)
    change_states: Callable[[torch.Tensor], torch.Tensor] = lambda states: states

    def install(self, monkeypatch: pytest.MonkeyPatch) -> StandIn:
        vllm, config = ModuleType("vllm"), ModuleType("vllm.config")
        vllm.__dict__.update(
            LLM=self.make, SamplingParams=SimpleNamespace, PoolingParams=SimpleNamespace, __version__="0.0"
        )
        config.__dict__.update(PoolerConfig=SimpleNamespace)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.config", config)
        sampling = ModuleType("vllm.sampling_params")
        sampling.__dict__.update(RepetitionDetectionParams=SimpleNamespace)
        monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
        return self

    def make(self, model: str, *, runner: str, dtype: str, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM

        if fault := self.faults.pop("load", None):
            raise fault
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.events.append(f"load {runner}")
        self.options[runner] = {"dtype": dtype, **options}

        def generate(prompts: Any, params: Any, use_tqdm: bool) -> list[Any]:
            self.note("generate", len(prompts), params)
            return [self.write(policy, *pair) for pair in zip(prompts, params, strict=True)]

        @torch.inference_mode()
        def encode(prompts: Any, params: Any, use_tqdm: bool, pooling_task: str) -> list[Any]:
            self.note("pooling", len(prompts), params)
            tokens = [torch.tensor([prompt["prompt_token_ids"]]) for prompt in prompts]
            states = [self.change_states(policy.base_model(ids).last_hidden_state[0]) for ids in tokens]
            return [SimpleNamespace(outputs=SimpleNamespace(data=data)) for data in states]

        core = SimpleNamespace(shutdown=lambda: self.events.append(f"stop {runner}"))
        return SimpleNamespace(generate=generate, encode=encode, llm_engine=SimpleNamespace(engine_core=core))

    def note(self, kind: str, count: int, params: Sequence[Any]) -> None:
        self.calls.append((kind, count))
        self.params += params
        if fault := self.faults.pop(kind, None):
            raise fault

    @staticmethod
    def write(policy: PreTrainedModel, prompt: dict[str, list[int]], params: Any) -> Any:
        request = RationaleRequest(
            input_ids=tuple(prompt["prompt_token_ids"]), prefix_length=0, max_new_tokens=params.max_tokens
        )
        end = frozenset(params.stop_token_ids)
        written = run_plain(policy, request, SamplingOptions(), end)
        tokens = list(written.token_ids) + ([min(end)] if written.finish_reason == "stop" else [])
        reason = written.finish_reason
        if (rule := getattr(params, "repetition_detection", None)) is not None:
            repeated = (length for length in range(1, len(tokens) + 1) if repeats(tokens[:length], rule))
            if length := next(repeated, 0):
                tokens, reason = tokens[:length], "repetition"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, finish_reason=reason)])


def repeats(tokens: Sequence[int], rule: Any) -> bool:
    """What vLLM ends a text by: its last tokens are one pattern, so many times in a row."""
    return any(
        len(tokens) >= size * rule.min_count
        and list(tokens[-size * rule.min_count :]) == list(tokens[-size:]) * rule.min_count
        for size in range(rule.min_pattern_size, rule.max_pattern_size + 1)
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn().install(monkeypatch)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., PreTrainedModel]) -> Path:
    path = tmp_path_factory.mktemp("vllm") / "model"
    make_model("qwen2").save_pretrained(path)
    return path


@pytest.fixture
def engine(stand_in: StandIn, folder: Path) -> VLLMEngine:
    return VLLMEngine(folder, end_tokens=END_TOKENS, dtype="float32")


# ---------------------------------------------------------------------- without vLLM


def test_says_how_to_install_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'grace-retrieval\[vllm\]'") as caught:
        VLLMEngine(folder)
    assert isinstance(caught.value, ImportError)


def test_does_not_hide_what_vllm_itself_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("import something_that_vllm_needs\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_vllm_needs") as caught:
        VLLMEngine(folder)
    assert not isinstance(caught.value, MissingExtraError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_model_len", 0),
        ("tensor_parallel_size", 0),
        ("gpu_memory_utilization", 0.0),
        ("gpu_memory_utilization", 1.1),
        ("dtype", "int8"),
    ],
)
def test_refuses_options_out_of_range(stand_in: StandIn, folder: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option}={value!r}"):
        VLLMEngine(folder, **{option: value})


def test_refuses_a_model_it_cannot_read(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="configuration and tokenizer"):
        VLLMEngine(tmp_path)


# ---------------------------------------------------------------------- with the stand-in


def test_gives_what_the_default_engine_gives(
    engine: VLLMEngine, stand_in: StandIn, make_model: Callable[..., PreTrainedModel]
) -> None:
    requests = made_requests()
    default = TransformersEngine(make_model("qwen2"), end_tokens=END_TOKENS)
    expected = outputs(default, requests)
    assert {output.finish_reason for output in expected} == {"stop", "length", "given"}, "or it shows little"
    assert_same(outputs(engine, requests), expected)
    calls = {"forward_passes": 3}  # one to write, two to pool
    assert engine.statistics() == {**default.statistics(), **calls}
    assert isinstance(engine, RationaleEngine)
    assert (engine.family, engine.dtype) == ("vllm", "float32")


def test_ends_rationales_that_go_in_circles_where_the_default_engine_does(
    stand_in: StandIn, tmp_path: Path, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("gpt2", initializer_range=0.1)  # it goes in circles soon
    model.save_pretrained(tmp_path)
    engine = VLLMEngine(tmp_path, end_tokens=(0,), dtype="float32")
    requests, sampling = made_requests(budget=60), SamplingOptions(stop_repeats=True)
    expected = outputs(TransformersEngine(model, end_tokens=(0,)), requests, sampling=sampling)
    assert {output.finish_reason for output in expected} >= {"repeat", "given"}, "or it shows little"
    assert_same(outputs(engine, requests, sampling=sampling), expected)


def test_cuts_rationales_where_their_sentences_end(stand_in: StandIn, tiny_policy: Path) -> None:
    engine = VLLMEngine(tiny_policy, dtype="float32")
    sampling = SamplingOptions(temperature=2.0, seed=1)
    requests = [RationaleRequest(input_ids=(40, 41, 42 + n), prefix_length=1, max_new_tokens=200) for n in range(24)]
    whole = outputs(engine, requests, sampling=sampling)
    ends = [sentence_end(engine.tokenizer, output.token_ids, 1) for output in whole]
    assert any(ends), "or it shows nothing"
    for end, before, output in zip(
        ends, whole, outputs(engine, requests, sampling=replace(sampling, max_sentences=1)), strict=True
    ):
        assert output.token_ids == before.token_ids[:end]
        assert output.finish_reason == ("stop" if end else before.finish_reason)


def test_sets_vllm_up(stand_in: StandIn, folder: Path) -> None:
    engine = VLLMEngine(folder, end_tokens=END_TOKENS, gpu_memory_utilization=0.8, max_model_len=96)
    outputs(engine, made_requests())
    generate, pooling = stand_in.options["generate"], stand_in.options["pooling"]
    assert generate["gpu_memory_utilization"] == pooling["gpu_memory_utilization"] == pytest.approx(0.4)
    assert generate["max_model_len"] == pooling["max_model_len"] == 96
    assert generate["dtype"] == pooling["dtype"] == engine.dtype, "vLLM's own choice would differ"
    assert generate["enable_prefix_caching"]
    assert generate["generation_config"] == "vllm"
    assert pooling["pooler_config"].task == "token_embed"
    writing = [params for params in stand_in.params if hasattr(params, "max_tokens")]
    assert {params.max_tokens for params in writing} == {8, 9, 10}
    assert all(params.stop_token_ids == list(END_TOKENS) and params.ignore_eos for params in writing)
    assert all(params.temperature == 0 and params.seed is None for params in writing)
    assert not any(params.use_activation for params in stand_in.params if not hasattr(params, "max_tokens"))


def test_loads_nothing_that_is_not_needed(engine: VLLMEngine, stand_in: StandIn) -> None:
    assert list(engine.run([])) == []
    assert stand_in.events == []
    outputs(engine, made_requests()[-2:])
    assert stand_in.events == ["load pooling"], "given rationales are only pooled"
    engine.close()
    assert stand_in.events == ["load pooling", "stop pooling"]
    outputs(engine, made_requests()[-2:])
    assert stand_in.events[-1] == "load pooling"


def test_in_sequence_only_one_engine_is_loaded(
    stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GENERATE_TEXTS", 4)
    both = outputs(VLLMEngine(folder, end_tokens=END_TOKENS, dtype="float32"), made_requests())
    stand_in.events.clear()
    engine = VLLMEngine(folder, end_tokens=END_TOKENS, dtype="float32", sequential=True)
    assert_same(outputs(engine, made_requests()), both)
    assert_same(outputs(engine, made_requests()), both)
    once = ["load generate", "stop generate", "load pooling"]
    assert stand_in.events == [*once, "stop pooling", *once]
    assert stand_in.options["generate"]["gpu_memory_utilization"] == pytest.approx(0.9)


def test_hands_over_in_groups(engine: VLLMEngine, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = made_requests(7)
    together = outputs(engine, requests)
    stand_in.calls.clear()
    monkeypatch.setattr(module, "GENERATE_TEXTS", 3)
    monkeypatch.setattr(module, "STATE_BYTES", 4 * 32 * 60)  # 60 tokens
    assert_same(outputs(engine, requests), together)
    assert [count for kind, count in stand_in.calls if kind == "generate"] == [3, 3, 1]
    pooled = [count for kind, count in stand_in.calls if kind == "pooling"]
    assert sum(pooled) == len(requests)
    assert max(pooled) < 4, "the hidden states of more would not fit"


def test_yields_a_group_before_the_next_is_written(
    engine: VLLMEngine, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GENERATE_TEXTS", 2)
    stream: Iterator[Any] = engine.run(made_requests()[:6])
    next(stream)
    assert [kind for kind, _ in stand_in.calls] == ["generate", "pooling"]


@pytest.mark.parametrize("kind", ["generate", "pooling"])
def test_an_engine_that_failed_is_loaded_anew(engine: VLLMEngine, stand_in: StandIn, kind: str) -> None:
    expected = outputs(engine, made_requests())
    stand_in.faults[kind] = RuntimeError("out of blocks")
    with pytest.raises(EngineError, match="out of blocks"):
        outputs(engine, made_requests())
    assert stand_in.events[-1] == f"stop {kind}"
    assert_same(outputs(engine, made_requests()), expected)


def test_an_interruption_leaves_nothing_in_the_queue(engine: VLLMEngine, stand_in: StandIn) -> None:
    outputs(engine, made_requests())
    stand_in.faults["generate"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        outputs(engine, made_requests())
    assert stand_in.events[-1] == "stop generate"


def test_says_what_to_do_when_vllm_does_not_start(engine: VLLMEngine, stand_in: StandIn) -> None:
    stand_in.faults["load"] = ValueError("No available memory for the cache blocks.")
    with pytest.raises(EngineError, match=r"No available memory.*max_model_len.*sequential=True"):
        outputs(engine, made_requests())


def test_refuses_states_that_are_not_finite(engine: VLLMEngine, stand_in: StandIn) -> None:
    stand_in.change_states = lambda states: states * torch.inf
    with pytest.raises(NonFiniteEmbeddingError, match="bfloat16"):
        outputs(engine, made_requests())


def test_refuses_states_that_are_not_one_a_token(engine: VLLMEngine, stand_in: StandIn) -> None:
    stand_in.change_states = lambda states: states[1:]
    with pytest.raises(EngineError, match=r"shape \(\d+, 32\)"):
        outputs(engine, made_requests())


def test_refuses_what_vllm_would_cut_or_refuse(stand_in: StandIn, folder: Path) -> None:
    engine = VLLMEngine(folder, end_tokens=END_TOKENS, max_model_len=20)
    with pytest.raises(InputError, match="max_model_len=20"):
        outputs(engine, made_requests())
    with pytest.raises(InputError, match="temperature=3"):
        outputs(engine, made_requests(), sampling=SamplingOptions(temperature=3.0))
    assert stand_in.events == []


def test_every_text_has_a_random_stream_of_its_own(engine: VLLMEngine, stand_in: StandIn) -> None:
    def seeds(requests: Sequence[RationaleRequest], seed: int) -> list[int]:
        stand_in.params.clear()
        outputs(engine, requests, sampling=SamplingOptions(temperature=0.7, top_p=0.9, top_k=5, seed=seed))
        return [params.seed for params in stand_in.params if hasattr(params, "max_tokens")]

    requests = made_requests()[:6]
    first = seeds(requests, 1)
    assert len(set(first)) == len(first)
    assert all(0 <= seed < 2**63 for seed in first)
    assert seeds(requests[::-1], 1)[::-1] == first, "whatever the batch"
    assert seeds(requests[2:3], 1) == first[2:3]
    assert not set(seeds(requests, 2)) & set(first)


def test_finds_the_end_tokens(stand_in: StandIn, tiny_policy: Path) -> None:
    assert VLLMEngine(tiny_policy).end_tokens == {765}


def test_takes_the_place_of_the_default_engine(
    stand_in: StandIn, tiny_policy: Path, make_embedder: Callable[..., GraceEmbedder]
) -> None:
    embedder = make_embedder()
    texts = ["What causes ocean tides?", "", "def mean(xs):\n    return sum(xs) / len(xs)"]
    expected = embedder.encode(texts)
    identity = embedder.fingerprint()
    embedder.writer.engine = VLLMEngine(tiny_policy, dtype="float32")
    np.testing.assert_allclose(embedder.encode(texts), expected, atol=1e-5)
    assert embedder.fingerprint().digest() != identity.digest(), "engines do not share cached vectors"


def test_by_name_it_loads_itself_and_transformers_loads_nothing(
    stand_in: StandIn, tiny_policy: Path, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    documents = ["What causes ocean tides?", "Bread rises because yeast makes gas."]
    default = make_embedder(max_seq_length=160)
    embedder = make_embedder(engine="vllm", engine_options={"dtype": "float32"}, max_seq_length=160)
    assert embedder.writer.model is None and embedder.pipeline.source.loaded is None
    assert stand_in.events == [], "vLLM loads when the first text comes"
    np.testing.assert_allclose(embedder.encode(documents), default.encode(documents), atol=1e-5)
    assert stand_in.options["generate"]["max_model_len"] == 160 + embedder.writer.max_new_tokens
    assert embedder.pipeline.policy.weights_id() == default.pipeline.policy.weights_id(), "saved in float32"
    ours, theirs = (model.explain("moon", documents[0]) for model in (embedder, default))
    assert abs(ours.score - theirs.score) < 1e-5
    build_index([Document(id=text[:4], text=text) for text in documents], tmp_path / "index", embedder=embedder)
    with GraceIndex.open(tmp_path / "index") as index:
        assert index.embedder.pipeline.policy.family == "vllm"
        (hit, _) = index.search(documents[1], k=2).hits
    scores = default.encode_document(documents) @ default.encode_query(documents[1])
    assert abs(hit.score - scores.max()) < 1e-5


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_have_the_hash_of_the_loaded_model(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path, kind: str, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    make_model(kind, dtype=torch.bfloat16, tie_word_embeddings=tied).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert hash_checkpoint(tmp_path, tied=tied) == hash_weights(loaded)
    with pytest.raises(ModelLoadError, match=r"no \*.safetensors"):
        hash_checkpoint(tmp_path / "nowhere")


# ---------------------------------------------------------------------- with vLLM


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_itself(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch, tiny_policy: Path
) -> None:
    pytest.importorskip(
        "vllm", reason="vLLM is not installed; how to: benchmarks/programs/check_vllm.py", exc_type=ImportError
    )
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    # vLLM's CPU kernels know no heads smaller than 32.
    model = make_model("qwen2", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, intermediate_size=96)
    model.save_pretrained(tmp_path)
    for file in tiny_policy.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    engine = VLLMEngine(
        tmp_path, end_tokens=END_TOKENS, dtype="float32", gpu_memory_utilization=0.2, enforce_eager=True
    )
    requests = made_requests()
    expected = outputs(TransformersEngine(model, end_tokens=END_TOKENS), requests)
    assert {output.finish_reason for output in expected} == {"stop", "length", "given"}, "or it shows little"
    try:
        assert_same(outputs(engine, requests), expected)
    finally:
        engine.close()
