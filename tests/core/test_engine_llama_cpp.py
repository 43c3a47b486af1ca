"""llama.cpp as a back end, and as the judge of what is read from GGUF files: the real library, on tiny models.

Skipped where llama-cpp-python is not installed: the package index has it as source, which compiles for ten minutes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grace_retrieval import GraceEmbedder, GraceIndex
from grace_retrieval.corpus.document import Document
from grace_retrieval.engine import Policy, RationaleRequest, SamplingOptions
from grace_retrieval.errors import InputError, ModelLoadError, ModelMismatchError
from grace_retrieval.indexing import build_index
from grace_retrieval.loading import load_policy
from tests.core.gguf_files import CONFIGS, HARD_TEXTS, write_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it comes as source)")

from grace_retrieval.engines.llama_context import Fed, LlamaContext, import_llama_cpp  # noqa: E402
from grace_retrieval.engines.llama_cpp import LlamaCppEngine  # noqa: E402

# llama.cpp looks GELU up in a table of half precision.
CLOSE = {"llama": 1e-4, "qwen2": 1e-4, "qwen3": 1e-4, "gemma3": 2e-2, "gpt2": 2e-2}
TEXTS = ["Bread rises because yeast turns sugar into gas.", "Tides follow the moon.", "1. One\n\n2. Two", "x"]
OPTIONS: dict[str, Any] = {"cache": None, "max_new_tokens": 6, "max_seq_length": 200}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    for architecture in CONFIGS:
        write_gguf(folder / f"{architecture}.gguf", architecture)
    return {architecture: folder / f"{architecture}.gguf" for architecture in CONFIGS}


@pytest.fixture
def both(files: dict[str, Path]) -> Iterator[tuple[GraceEmbedder, GraceEmbedder]]:
    """The same file by llama.cpp, and by transformers in float32, which is how its weights are stored."""
    theirs = GraceEmbedder(files["llama"], engine="llama-cpp", **OPTIONS)
    ours = GraceEmbedder(files["llama"], model_kwargs={"dtype": "float32"}, **OPTIONS)
    yield theirs, ours
    theirs.pipeline.policy.close()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_read_from_a_file_is_what_llama_cpp_reads(architecture: str, files: dict[str, Path]) -> None:
    model, tokenizer = load_policy(str(files[architecture]), model_kwargs={"dtype": "float32"})
    context = LlamaContext(str(files[architecture]), tokens=256, sequences=1, threads=1, exact=True)
    vocabulary = llama_cpp.llama_model_get_vocab(context._model)
    for text in HARD_TEXTS:
        ids, encoded, found = (
            tokenizer(text, add_special_tokens=False)["input_ids"],
            text.encode(),
            (llama_cpp.llama_token * 512)(),
        )
        count = llama_cpp.llama_tokenize(vocabulary, encoded, len(encoded), found, 512, False, False)
        assert ids == list(found[:count]), text
        context.forget(-1)
        states, _ = context.decode([Fed(0, 0, ids)], logits=False)
        with torch.inference_mode():
            expected = model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, expected, atol=CLOSE[architecture] * float(np.abs(expected).max()))
    context.close()


def test_states_do_not_need_logits(files: dict[str, Path]) -> None:
    context = LlamaContext(str(files["llama"]), tokens=256, sequences=3, threads=1, exact=True)
    ids = list(range(3, 60))
    with_logits = context.decode([Fed(0, 0, ids)], logits=True)[0].copy()
    context.forget(-1)
    states, logits = context.decode([Fed(0, 0, ids)], logits=False)
    assert logits is None
    assert context._reached, "it stopped in front of the output layer"
    np.testing.assert_array_equal(states, with_logits)
    context.copy(0, 1, 20)
    context.copy(0, 2, 20)
    shared = context.decode([Fed(1, 20, ids[20:]), Fed(2, 20, ids[20:30])], logits=True)[0]
    np.testing.assert_allclose(shared[: len(ids) - 20], with_logits[20:], atol=1e-3)
    np.testing.assert_allclose(shared[len(ids) - 20 :], with_logits[20:30], atol=1e-3)
    context.close()


def test_it_is_a_policy_that_needs_no_other_weights(files: dict[str, Path], grace_cache_dir: Path) -> None:
    embedder = GraceEmbedder(files["llama"], engine="llama-cpp", **OPTIONS)
    policy = embedder.pipeline.policy
    assert isinstance(policy, Policy)
    assert embedder.encode_document(TEXTS).shape == (4, 64)
    assert not (grace_cache_dir / "models").exists(), "nothing was converted"
    assert policy.statistics()["texts"] == 4
    policy.close()
    assert embedder.encode_document(TEXTS[:1]).shape == (1, 64), "what was closed is loaded again"


def test_circles_are_cut_where_the_default_engine_cuts_them(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    rng = np.random.default_rng(1)
    bodies = [tuple(rng.integers(8, 100, length).tolist()) for length in (5, 9, 3, 12)]
    requests = [RationaleRequest(input_ids=(5, 6, 7, *body), prefix_length=3, max_new_tokens=100) for body in bodies]
    sampling = SamplingOptions(stop_repeats=True)
    theirs, ours = (dict(embedder.pipeline.policy.run(requests, sampling)) for embedder in both)
    assert any(output.finish_reason == "repeat" for output in ours.values()), "or it shows nothing"
    for place, output in ours.items():
        assert (theirs[place].token_ids, theirs[place].finish_reason) == (output.token_ids, output.finish_reason)
        np.testing.assert_allclose(theirs[place].vector, output.vector, atol=1e-3)


def test_sentences_end_where_the_default_engine_ends_them(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    rng = np.random.default_rng(2)
    bodies = [tuple(rng.integers(8, 100, length).tolist()) for length in (5, 9, 3, 12)]
    requests = [RationaleRequest(input_ids=(5, 6, 7, *body), prefix_length=3, max_new_tokens=100) for body in bodies]
    sampling = SamplingOptions(temperature=9.0, seed=4, max_sentences=1)  # sooner or later a line ends
    theirs, ours = (dict(embedder.pipeline.policy.run(requests, sampling)) for embedder in both)
    whole = dict(both[1].pipeline.policy.run(requests, SamplingOptions(temperature=9.0, seed=4)))
    assert any(len(output.token_ids) < len(whole[place].token_ids) for place, output in ours.items()), (
        "it shows nothing"
    )
    for place, output in ours.items():
        assert (theirs[place].token_ids, theirs[place].finish_reason) == (output.token_ids, output.finish_reason)
        np.testing.assert_allclose(theirs[place].vector, output.vector, atol=1e-3)


def test_rationales_and_vectors_are_those_of_the_default_engine(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    theirs, ours = (embedder.encode_with_rationales(TEXTS, "document") for embedder in both)
    assert [row.token_ids for row in theirs.rationales] == [row.token_ids for row in ours.rationales]
    assert [row.truncated for row in theirs.rationales] == [row.truncated for row in ours.rationales]
    np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-3)
    for mode in (False, "echo"):
        theirs_alone, ours_alone = (embedder.encode_query(TEXTS, rationale=mode) for embedder in both)
        np.testing.assert_allclose(theirs_alone, ours_alone, atol=1e-3)


def test_given_rationales_and_explanations(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    given = ["Yeast makes gas.", "", "Two things", "y"]
    theirs, ours = (embedder.encode_document(TEXTS, rationales=given) for embedder in both)
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    found, expected = (embedder.explain(TEXTS[0], TEXTS[1]) for embedder in both)
    assert found.score == pytest.approx(expected.score, abs=2e-3)
    assert found.document.contributions.sum() == pytest.approx(found.score, abs=1e-9)


def test_sampling_draws_the_same_numbers(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    rendered = both[0].pipeline.render(TEXTS)
    sampling = SamplingOptions(temperature=1.0, top_p=0.9, seed=3)
    theirs, ours = (embedder.pipeline.write(rendered, sampling=sampling, cached=False) for embedder in both)
    assert [row.token_ids for row in theirs] == [row.token_ids for row in ours]
    alone = both[0].pipeline.write(rendered[1:2], sampling=sampling, cached=False)
    assert alone[0].token_ids == theirs[1].token_ids, "whatever else is in the batch"


def test_more_texts_than_fit_at_once(files: dict[str, Path]) -> None:
    texts = [f"{'word ' * (n % 7)}text number {n}" for n in range(21)]
    small = LlamaCppEngine(files["llama"], max_batch_rows=3, max_batch_tokens=300, max_length=250)
    large = LlamaCppEngine(files["llama"], max_length=250)
    ids = [tuple(small.tokenizer(text)["input_ids"]) for text in texts]
    requests = [RationaleRequest(input_ids=(1, 2, 3, *row), prefix_length=3, max_new_tokens=5) for row in ids]
    one, other = dict(small.run(requests)), dict(large.run(requests))
    assert sorted(one) == sorted(other) == list(range(21))
    for place in range(21):
        assert one[place].token_ids == other[place].token_ids
        np.testing.assert_allclose(
            one[place].vector, other[place].vector, atol=1e-3 * np.abs(other[place].vector).max()
        )


def test_an_index_is_opened_again_with_it(files: dict[str, Path], tmp_path: Path) -> None:
    embedder = GraceEmbedder(files["qwen2"], engine="llama-cpp", engine_options={"threads": 1}, **OPTIONS)
    build_index([Document(id=str(n), text=text) for n, text in enumerate(TEXTS)], tmp_path / "ix", embedder=embedder)
    index = GraceIndex.open(tmp_path / "ix")
    assert index.embedder.pipeline.engine_name == "llama-cpp"
    assert index.search("Bread rises.", k=2).ids


def test_another_engine_searches_an_index_if_it_is_asked_for(files: dict[str, Path], tmp_path: Path) -> None:
    made = GraceEmbedder(files["qwen3"], **OPTIONS)
    build_index([Document(id=str(n), text=text) for n, text in enumerate(TEXTS)], tmp_path / "ix", embedder=made)
    theirs = GraceEmbedder(files["qwen3"], engine="llama-cpp", **OPTIONS)
    with pytest.raises(ModelMismatchError, match=r"engine: 'llama\.cpp' here, 'transformers' there"):
        GraceIndex.open(tmp_path / "ix", embedder=theirs)
    with pytest.warns(UserWarning, match="was made by the engine 'transformers' .*, as you asked"):
        index = GraceIndex.open(tmp_path / "ix", engine="llama-cpp")
        found = index.search(TEXTS[1], k=4)
    assert index.embedder.pipeline.engine_name == "llama-cpp"
    expected = GraceIndex.open(tmp_path / "ix").search(TEXTS[1], k=4)
    np.testing.assert_allclose(sorted(found.scores), sorted(expected.scores), atol=2e-2)
    with pytest.raises(ModelMismatchError, match="weights"), warnings.catch_warnings():
        warnings.simplefilter("error")
        GraceIndex.open(tmp_path / "ix", engine="llama-cpp", embedder=files["qwen2"])


def test_it_is_the_same_model_by_another_engine(both: tuple[GraceEmbedder, GraceEmbedder]) -> None:
    theirs, ours = (embedder.vector_identity() for embedder in both)
    assert theirs.differences(ours) == [
        "dtype: 'f32' here, 'float32' there",
        "engine: 'llama.cpp' here, 'transformers' there",
    ]


def test_what_cannot_be_run(files: dict[str, Path], tmp_path: Path, tiny_policy: Path) -> None:
    with pytest.raises(InputError, match="engine='llama-cpp' runs a GGUF file"):
        GraceEmbedder(tiny_policy, engine="llama-cpp", cache=None)
    with pytest.raises(InputError, match="threads=0: give a positive"):
        GraceEmbedder(files["llama"], engine="llama-cpp", engine_options={"threads": 0}, cache=None)
    (tmp_path / "cut.gguf").write_bytes(files["llama"].read_bytes()[:50_000])
    with pytest.raises(ModelLoadError, match="damaged or cut short"):
        GraceEmbedder(tmp_path / "cut.gguf", engine="llama-cpp", cache=None)
    engine = LlamaCppEngine(files["llama"], max_length=250)
    request = RationaleRequest(input_ids=tuple(range(3, 250)), prefix_length=1, max_new_tokens=100)
    with pytest.raises(InputError, match=r"A prompt of 347 tokens .* has 256 positions"):
        list(engine.run([request]))


def test_messages_go_to_logging(capfd: pytest.CaptureFixture[str], files: dict[str, Path]) -> None:
    import_llama_cpp()
    LlamaContext(str(files["gpt2"]), tokens=64, sequences=1, threads=1, exact=True).close()
    assert capfd.readouterr().err == ""
