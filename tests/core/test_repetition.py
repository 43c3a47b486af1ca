"""Rationales that go in circles: what counts as one, where each engine cuts it, and whose rows they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import GraceEmbedder, InputError, Rationale, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.plain import run_plain
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.repetition import RepetitionWatch, repetition_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]

PREFIX = (700, 701, 702)
STOP = SamplingOptions(stop_repeats=True)
TEXTS = ["Bread rises because yeast turns sugar into gas.", "Tides follow the moon.", "Glass is sand."]

# Which token follows which, and so which circles the policy of these tests goes in.
FOLLOWS = {
    **{token: token + 1 for token in range(20, 39)},
    39: 30,  # 30 to 39: ten tokens
    45: 45,
    50: 51,
    51: 50,
    **{60: 61, 61: 62, 62: 60},
    **{70: 71, 71: 72, 72: 73, 73: 70},
    **{token: token + 1 for token in range(80, 199)},
    199: 80,  # 80 to 199: too long for a circle
}


def circle(tokens: Sequence[int]) -> bool:
    """The rule, word by word: the last 4 to 64 tokens stand there three times in a row."""
    return any(
        len(tokens) >= 3 * size and all(tokens[-1 - place] == tokens[-1 - place - size] for place in range(2 * size))
        for size in range(4, 65)
    )


@pytest.fixture(scope="module")
def circling(make_model: MakeModel) -> PreTrainedModel:
    """A policy whose greedy choice is FOLLOWS."""
    model = make_model("llama", pad_token_id=None)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.get_input_embeddings().weight
        embedding /= embedding.norm(dim=1, keepdim=True)
        head = model.get_output_embeddings().weight
        head.zero_()
        for token, following in FOLLOWS.items():
            head[following] += embedding[token]
    return model


def request(*body: int, budget: int = 150) -> RationaleRequest:
    return RationaleRequest(input_ids=(*PREFIX, *body), prefix_length=len(PREFIX), max_new_tokens=budget)


def run(
    engine: TransformersEngine, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None
) -> list[RationaleOutput]:
    found = dict(engine.run(requests, sampling))
    return [found[place] for place in range(len(requests))]


def pooled_again(engine: TransformersEngine, asked: RationaleRequest, output: RationaleOutput) -> Any:
    """The vector of what is left, given as it is."""
    given = replace(asked, rationale_ids=output.token_ids, max_new_tokens=0)
    return run(engine, [given], None)[0].vector


class TestRule:
    @pytest.mark.parametrize(
        ("tokens", "kept"),
        [
            ([1, 2, 3, 4] * 3, 4),
            ([9, 8, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 7),
            ([7] * 12, 1),
            ([1, 7, 8, 7, 8, 7, 8, 7, 8, 7, 8, 7, 8], 3),
            ([1, 2, 3] * 6, 3),
            ([5, *range(64), *range(64), *range(64)], 65),
        ],
    )
    def test_is_ended_with_its_last_token_and_keeps_what_repeats_once(self, tokens: list[int], kept: int) -> None:
        watch = RepetitionWatch()
        assert [watch.add(token) for token in tokens] == [None] * (len(tokens) - 1) + [kept]
        assert repetition_start(tokens) == repetition_start([*tokens, 600, 601]) == kept

    @pytest.mark.parametrize(
        "tokens",
        [
            [],
            [7] * 11,
            [1, 2, 3, 4] * 2 + [1, 2, 3, 5],
            list(range(65)) * 4,
            [1, 2, 3] * 5,
            [1, 2, 3, 4, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 2, 3, 4],
        ],
    )
    def test_leaves_what_is_no_circle(self, tokens: list[int]) -> None:
        assert repetition_start(tokens) is None

    @pytest.mark.parametrize("seed", range(60))
    def test_is_what_it_says(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        alphabet, size = rng.integers(1, 5), rng.integers(1, 70)
        lead = rng.integers(0, alphabet + 1, rng.integers(0, 40)).tolist()
        tokens = [*lead, *(rng.integers(0, alphabet + 1, size).tolist() * 3), *rng.integers(0, 9, 20).tolist()]
        ends = next((end for end in range(1, len(tokens) + 1) if circle(tokens[:end])), None)
        watch, found = RepetitionWatch(), None
        for place, token in enumerate(tokens):
            found = watch.add(token)
            assert (found is not None) == (place + 1 == ends)
            if found is not None:
                break
        if ends is not None and found is not None:
            # All that goes is a repetition of what stands before it, and none of that is one more.
            gone = ends - found
            size = next(size for size in range(1, 65) if tokens[found:ends] == tokens[found - size : ends - size])
            assert gone >= 8 and gone >= 2 * size
            assert found == size or tokens[found - 1] != tokens[found - 1 - size]


class TestTransformersEngine:
    @pytest.mark.parametrize("draft", [True, False])
    def test_every_circle_is_cut_and_only_what_is_left_is_pooled(self, circling: PreTrainedModel, draft: bool) -> None:
        requests = [
            request(300, 25),  # 26 to 29, then the circle of ten
            request(301, 302, 303, 45),
            request(304, 50),
            request(305, 306, 60),
            request(307, 73),
            request(308, 80),
            request(309, 45, budget=11),
            request(310, 45, budget=12),
            replace(request(311, 45, budget=0), rationale_ids=(45,) * 20),
        ]
        left = [
            (tuple(range(26, 40)), "repeat"),
            ((45,), "repeat"),
            ((51, 50), "repeat"),
            ((61, 62, 60), "repeat"),
            ((70, 71, 72, 73), "repeat"),
            ((*range(81, 200), *range(80, 111)), "length"),
            ((45,) * 11, "length"),
            ((45,), "repeat"),
            ((45,) * 20, "given"),
        ]
        engine = TransformersEngine(circling, end_tokens=(), draft=draft)
        outputs = run(engine, requests, STOP)
        assert [(output.token_ids, output.finish_reason) for output in outputs] == left
        assert all(output.end_token is None for output in outputs)
        for asked, output in zip(requests, outputs, strict=True):
            np.testing.assert_allclose(output.vector, pooled_again(engine, asked, output), atol=1e-6)
        for asked, output in zip(requests, outputs, strict=True):
            (alone,) = run(engine, [asked], STOP)
            assert (alone.token_ids, alone.finish_reason) == (output.token_ids, output.finish_reason)
            np.testing.assert_allclose(alone.vector, output.vector, atol=1e-6)

    def test_nothing_is_fed_behind_the_circle(self, circling: PreTrainedModel) -> None:
        engine = TransformersEngine(circling, end_tokens=(), draft=False)
        run(engine, [request(1, budget=0)], None)  # the engine's own trial, and the prefix
        before = engine.statistics()["forward_passes"]
        run(engine, [request(300, 25)], STOP)
        assert engine.statistics()["forward_passes"] - before == 1 + 4 + 30  # the prompt, and each token

    def test_an_end_token_comes_first(self, circling: PreTrainedModel) -> None:
        engine = TransformersEngine(circling, end_tokens=(33,))
        (output,) = run(engine, [request(300, 25)], STOP)
        assert (output.token_ids, output.finish_reason, output.end_token) == (tuple(range(26, 33)), "stop", 33)

    def test_it_is_off_unless_asked_for(self, circling: PreTrainedModel) -> None:
        engine = TransformersEngine(circling, end_tokens=())
        for sampling in (None, SamplingOptions()):
            (output,) = run(engine, [request(300, 45, budget=30)], sampling)
            assert (output.token_ids, output.finish_reason) == ((45,) * 30, "length")

    @pytest.mark.parametrize(("name", "temperature"), [("qwen2", 0.0), ("gpt2", 0.05), ("bloom", 0.0), ("mamba", 0.3)])
    @pytest.mark.filterwarnings("ignore")  # mamba: kernels that are not there
    def test_policies_write_what_they_wrote_and_no_more(
        self, make_model: MakeModel, name: str, temperature: float
    ) -> None:
        small = {"initializer_range": 0.1} if name in ("qwen2", "gpt2") else {}  # they go in circles sooner
        rng = np.random.default_rng(3)
        requests = [request(*rng.integers(40, 700, 12).tolist(), budget=60) for _ in range(6)]
        sampling = SamplingOptions(temperature=temperature, seed=5)
        engine = TransformersEngine(make_model(name, **small), end_tokens=range(20))
        whole = run(engine, requests, sampling)
        outputs = run(engine, requests, replace(sampling, stop_repeats=True))
        for asked, output, before in zip(requests, outputs, whole, strict=True):
            start = repetition_start(before.token_ids)
            assert output.token_ids == before.token_ids[:start]
            assert output.finish_reason == (before.finish_reason if start is None else "repeat")
            np.testing.assert_allclose(output.vector, pooled_again(engine, asked, output), atol=1e-5)
        assert any(output.finish_reason == "repeat" for output in outputs), "or it shows little"

    def test_samples_of_a_text_are_cut_each_for_itself(self, make_model: MakeModel) -> None:
        engine = TransformersEngine(make_model("gpt2", initializer_range=0.1), end_tokens=())
        asked = [replace(request(*range(300, 330, 3), budget=60), sample=sample) for sample in range(6)]
        sampling = SamplingOptions(temperature=0.1, stop_repeats=True)
        together = run(engine, asked, sampling)
        assert len({output.token_ids for output in together}) > 1 and any(o.finish_reason == "repeat" for o in together)
        for one, output in zip(asked, together, strict=True):
            (alone,) = run(engine, [one], sampling)
            assert (alone.token_ids, alone.finish_reason) == (output.token_ids, output.finish_reason)
            np.testing.assert_allclose(alone.vector, output.vector, atol=1e-5)

    def test_the_plain_way_gives_the_same(self, circling: PreTrainedModel) -> None:
        engine = TransformersEngine(circling, end_tokens=())
        for asked in (request(300, 25), request(304, 50), request(308, 80), request(309, 45, budget=11)):
            (output,) = run(engine, [asked], STOP)
            plain = run_plain(circling, asked, STOP, frozenset())
            assert (plain.token_ids, plain.finish_reason) == (output.token_ids, output.finish_reason)
            np.testing.assert_allclose(plain.vector, output.vector, atol=1e-6)


@pytest.fixture
def circling_folder(circling: PreTrainedModel, tiny_policy: Path, tmp_path: Path) -> Path:
    """A plain language model on the disk that writes nothing but circles, whatever it is shown."""
    with torch.no_grad():
        model = type(circling)(circling.config)
        model.load_state_dict(circling.state_dict())
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for token in range(len(head)):  # what has no successor is followed by 300, and 300 by itself
            if token not in FOLLOWS:
                head[300] += embedding[token]
    model.save_pretrained(tmp_path / "circling")
    for file in (*tiny_policy.glob("tokenizer*"), *tiny_policy.glob("chat_template*")):
        (tmp_path / "circling" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "circling"


class TestEmbedder:
    def test_a_plain_language_model_is_stopped_and_its_rationales_are_marked(self, circling_folder: Path) -> None:
        embedder = GraceEmbedder(circling_folder, cache="memory", max_new_tokens=40, device="cpu")
        for _ in ("written", "from the cache"):
            for rationale in embedder.rationales(TEXTS, "document"):
                assert 0 < len(rationale.token_ids) < 20
                assert rationale.circled and rationale.repeats and rationale.truncated
        found = embedder.encode_with_rationales(TEXTS, "document")
        given = embedder.encode_document(TEXTS, rationales=found.rationales)
        np.testing.assert_allclose(found.vectors, given, atol=1e-6)

    def test_with_and_without_are_two_identities_that_share_a_cache(self, circling_folder: Path) -> None:
        cache = circling_folder / "cache.sqlite"
        made: dict[bool, Any] = {}
        for stop in (True, False):
            embedder = GraceEmbedder(circling_folder, cache=cache, max_new_tokens=40, stop_repeats=stop, device="cpu")
            made[stop] = embedder.fingerprint("document"), embedder.rationales(TEXTS, "document")
            assert embedder.pipeline.engine.statistics()["texts"] == len(TEXTS), "none of the other's"
        assert made[True][0].differences(made[False][0]) == ["generation.stop_repeats: [4, 64, 3] here, absent there"]
        for rationale in made[False][1]:
            assert len(rationale.token_ids) == 40 and rationale.truncated and not rationale.circled

    def test_texts_alone_are_the_same_with_and_without(self, make_embedder: Callable[..., GraceEmbedder]) -> None:
        one, other = make_embedder(stop_repeats=True), make_embedder(stop_repeats=False)
        for mode in (False, "echo"):
            assert one.vector_identity(mode).digest() == other.vector_identity(mode).digest()

    @pytest.mark.parametrize("stop", [True, False])
    def test_it_is_saved_with_the_model(
        self, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path, stop: bool
    ) -> None:
        embedder = make_embedder(stop_repeats=stop)
        embedder.save_pretrained(str(tmp_path / "saved"))
        saved = json.loads((tmp_path / "saved" / "grace_config.json").read_text(encoding="utf-8"))
        assert saved.get("stop_repeats", False) is stop
        again = GraceEmbedder(tmp_path / "saved", cache=None, device="cpu")
        assert again.pipeline.options.sampling.stop_repeats is stop
        assert again.vector_identity().digest() == embedder.vector_identity().digest()
        other = GraceEmbedder(tmp_path / "saved", cache=None, device="cpu", stop_repeats=not stop)
        assert other.pipeline.options.sampling.stop_repeats is not stop

    def test_what_is_no_answer_is_refused(self, make_embedder: Callable[..., GraceEmbedder]) -> None:
        with pytest.raises(InputError, match="stop_repeats='yes': give True or False"):
            make_embedder(stop_repeats="yes")


def test_a_rationale_that_was_cut_says_so_though_its_words_no_longer_do() -> None:
    given: dict[str, Any] = {"text": "Water for Rome.", "token_ids": (1, 2, 3), "text_truncated": False}
    assert not Rationale(**given, truncated=False).repeats
    assert Rationale(**given, truncated=True, circled=True).repeats
