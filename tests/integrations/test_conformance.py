"""What users of other embedding libraries complain about: each complaint is a promise, asked of every face.

The promises that concern processes stand in test_processes.py, those of vector stores in test_stores.py.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grace_retrieval import InputError, NonFiniteEmbeddingError, TruncationWarning

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

MakeFace = Callable[..., Any]
MakeEmbedder = Callable[..., "GraceEmbedder"]

FACES = ["core", "langchain", "llama_index", "haystack", "chroma"]
ASYNC_FACES = FACES[:4]
TEXTS = ["The moon pulls on the sea.", "Bread rises.", "x" * 90, "naïve café — 東京 🚀", "def f(x):\n\treturn x\n"]

every_face = pytest.mark.parametrize("name", FACES)
every_async_face = pytest.mark.parametrize("name", ASYNC_FACES)


@every_face
def test_a_text_that_is_too_long_is_reported_never_cut_in_silence(name: str, make_face: MakeFace) -> None:
    face = make_face(name, max_seq_length=200)
    with pytest.warns(TruncationWarning, match="1 of 2 texts are longer than max_seq_length=200"):
        face.documents(["short", "long " * 100])
    strict = make_face(name, max_seq_length=200, on_truncation="error")
    with pytest.raises(InputError, match="raise max_seq_length"):
        strict.documents(["short", "long " * 100])


@every_face
def test_one_long_document_among_short_ones_does_not_run_out_of_memory(name: str, make_face: MakeFace) -> None:
    import torch

    face, free = make_face(name, cache=None), make_face(name, cache=None, max_batch_tokens=100_000)
    texts = ["word " * 120, *("word " * 39 + str(n) for n in range(8))]
    expected = free.documents(texts)
    model, tried = face.embedder.writer.model, []

    def allocate(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tried.append(kwargs["input_ids"].numel())
        if tried[-1] > 700:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = model.base_model.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        np.testing.assert_allclose(face.documents(texts), expected, atol=1e-5)
    finally:
        hook.remove()
    assert max(tried) > 700, "a batch must have been too large, or this test shows nothing"


@every_face
def test_a_vector_does_not_depend_on_the_batch_beyond_the_stated_tolerance(name: str, make_face: MakeFace) -> None:
    face = make_face(name, cache=None)
    together = face.documents(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(face.documents([text])[0], vector, atol=1e-5)
    assert face.calls == 2 * len(TEXTS)


@every_async_face
async def test_the_event_loop_goes_on_while_200_calls_run_and_they_are_a_few_model_calls(
    name: str, make_face: MakeFace
) -> None:
    face = make_face(name)
    assert face.aquery is not None
    batches: list[int] = []
    beats = 0
    done = asyncio.Event()

    async def heart() -> None:
        nonlocal beats
        while not done.is_set():
            beats += 1
            await asyncio.sleep(0.001)

    writer = face.embedder.writer
    run = writer.engine.run

    def counted(requests: Any, sampling: Any = None) -> Any:
        batches.append(len(requests))
        return run(requests, sampling)

    writer.engine.run = counted  # the engine does its work; only the calls are counted
    heartbeat = asyncio.create_task(heart())
    queries = [f"query number {n} about the sea" for n in range(200)]
    found = await asyncio.gather(*(face.aquery(query) for query in queries))
    done.set()
    await heartbeat
    assert sum(batches) == 200 and len(batches) <= 4
    assert beats >= 10
    assert [list(vector) for vector in found[:3]] == [list(face.query(query)) for query in queries[:3]]


@every_async_face
def test_async_calls_work_in_one_loop_after_another_and_sync_calls_inside_of_one(
    name: str, make_face: MakeFace
) -> None:
    face = make_face(name)
    assert face.adocuments is not None
    expected = face.documents(TEXTS)
    for _ in range(2):  # each run closes its loop
        assert [list(vector) for vector in asyncio.run(face.adocuments(TEXTS))] == expected

    async def inside() -> Any:
        waiting = asyncio.ensure_future(face.adocuments(["a text of its own"]))
        await asyncio.sleep(0)
        return face.documents(TEXTS), await waiting  # a sync call while the loop runs and a request waits

    documents, (other,) = asyncio.run(inside())
    assert documents == expected and len(other) == 32


@every_async_face
async def test_a_cancelled_request_loses_only_itself(name: str, make_face: MakeFace) -> None:
    face = make_face(name)
    assert face.aquery is not None
    tasks = [asyncio.ensure_future(face.aquery(f"query {n}")) for n in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[2], asyncio.CancelledError)
    assert [len(vector) for n, vector in enumerate(found) if n != 2] == [32] * 4


@every_face
def test_sixteen_threads_load_once_and_embed_alike(name: str, make_face: MakeFace) -> None:
    face = make_face(name)
    expected = make_face(name, cache=None).documents(TEXTS)
    start = threading.Barrier(16)

    def work(number: int) -> Any:
        start.wait()
        return face.documents(TEXTS), face.query(TEXTS[number % 5])

    with ThreadPoolExecutor(16) as pool:
        for documents, query in pool.map(work, range(16)):
            np.testing.assert_allclose(documents, expected, atol=1e-5)
            assert len(query) == 32
    assert face.embedder.cache is not None and len(face.embedder.cache) == 2 * len(TEXTS)
    assert face.embedder.cache.verify().ok


@pytest.mark.parametrize("name", FACES[1:])
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_carry_configuration_only_and_share_the_loaded_model(name: str, how: str, make_face: MakeFace) -> None:
    face = make_face(name, system_prompt="Say what it is.")
    expected = face.documents(TEXTS)
    copied = copy.deepcopy(face.native) if how == "deepcopy" else pickle.loads(pickle.dumps(face.native))
    assert copied is not face.native
    assert len(pickle.dumps(face.native)) < 5_000, "weights of the tiny model alone are 200 kB"
    again = getattr(copied, "document", copied)
    settings = getattr(again, "settings", again)
    assert settings.embedder is face.embedder
    assert settings.embed_documents(TEXTS) == pytest.approx(np.array(expected), abs=1e-6)


@every_face
def test_queries_and_documents_have_their_own_prompts_and_rows(name: str, make_face: MakeFace) -> None:
    face = make_face(name, prompts={"query": "What is asked?", "document": "What is said?"})
    document, query = face.documents(["tides"])[0], face.query("tides")
    assert face.calls == 2, "a query is not answered with a document's row"
    assert np.abs(np.array(document) - query).max() > 1e-3
    embedder = face.embedder
    np.testing.assert_allclose(document, embedder.encode("tides", prompt="What is said?"), atol=1e-5)
    np.testing.assert_allclose(query, embedder.encode("tides", prompt="What is asked?"), atol=1e-5)


@every_face
def test_rows_of_one_prompt_or_model_are_never_read_by_another(
    name: str, make_face: MakeFace, make_embedder: MakeEmbedder, tmp_path: Path
) -> None:
    import torch

    first = make_face(name)
    original = first.documents(TEXTS)
    prompted = make_face(name, system_prompt="Say what it is.")
    assert np.abs(np.array(prompted.documents(TEXTS)) - original).max() > 1e-3 and prompted.calls == len(TEXTS)
    trained = make_embedder()
    with torch.no_grad():
        trained.writer.model.get_input_embeddings().weight.add_(0.05)
    trained.save_pretrained(str(tmp_path / "trained"))
    other = make_face(name, model=tmp_path / "trained")
    assert np.abs(np.array(other.documents(TEXTS)) - original).max() > 1e-3 and other.calls == len(TEXTS)
    again = make_face(name, seed=7)  # greedy: the seed changes nothing
    assert again.documents(TEXTS) == original and again.calls == 0, "the first one's rows are still there"


@every_face
def test_a_model_folder_written_anew_is_loaded_anew(
    name: str, make_face: MakeFace, make_embedder: MakeEmbedder, tmp_path: Path
) -> None:
    import torch

    embedder = make_embedder()
    embedder.save_pretrained(str(tmp_path / "model"))
    before = make_face(name, model=tmp_path / "model").documents(TEXTS)
    with torch.no_grad():
        embedder.writer.model.get_input_embeddings().weight.add_(0.05)
    embedder.save_pretrained(str(tmp_path / "model"))
    after = make_face(name, model=tmp_path / "model").documents(TEXTS)
    assert np.abs(np.array(after) - before).max() > 1e-3


@every_face
def test_a_blank_text_has_a_defined_vector_and_costs_no_model_call(name: str, make_face: MakeFace) -> None:
    face = make_face(name)
    blank, vector, spaces = face.documents(["", "text", " \n "])
    assert blank == spaces == [0.0] * 32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert face.query("") == [0.0] * 32
    assert face.calls == 1


@every_face
@pytest.mark.parametrize("count", [1, 2, 3, 33])
def test_there_are_as_many_vectors_as_texts_in_their_order(name: str, count: int, make_face: MakeFace) -> None:
    face = make_face(name)
    texts = [f"text {n % 7}" for n in range(count)]
    vectors = face.documents(texts)
    assert len(vectors) == count and all(len(vector) == 32 for vector in vectors)
    single = {text: face.documents([text])[0] for text in texts}
    assert vectors == [single[text] for text in texts]
    assert face.calls == min(count, 7), "duplicates are embedded once"


@every_face
def test_nan_is_an_error_and_never_a_vector(name: str, make_face: MakeFace) -> None:
    import torch

    face = make_face(name)
    with torch.no_grad():
        face.embedder.writer.model.base_model.norm.weight[3] = float("nan")
    with pytest.raises(NonFiniteEmbeddingError, match="load them again"):
        face.documents(TEXTS)
    assert len(face.embedder.cache) == 0


@pytest.mark.parametrize("name", FACES[:2])
def test_one_string_is_not_taken_for_a_list_of_its_characters(name: str, make_face: MakeFace) -> None:
    face = make_face(name)
    with pytest.raises(InputError, match=r"not as str: write \[text\]"):
        face.documents("abc")
    with pytest.raises(InputError, match=r"not as str: write \[text\]"):
        asyncio.run(face.adocuments("abc"))
    assert face.calls == 0


@pytest.mark.parametrize("name", [*FACES[:3], "chroma"])
@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["nested"]])
def test_what_is_no_text_is_named_with_its_place(name: str, wrong: Any, make_face: MakeFace) -> None:
    face = make_face(name)
    with pytest.raises(InputError, match=f"text 1 is {type(wrong).__name__}"):
        face.documents(["fine", wrong])
    assert face.calls == 0


@every_face
def test_a_text_reaches_the_model_byte_for_byte(name: str, make_face: MakeFace) -> None:
    face = make_face(name, cache=None)
    texts = ["two\nlines", "two lines", " two lines", "two\r\nlines", "\u00e9", "\u202eabc", "<|im_end|> & <b>\x00"]
    seen: list[tuple[int, ...]] = []
    engine = face.embedder.writer.engine
    run = engine.run

    def recorded(requests: Any, sampling: Any = None) -> Any:
        seen.extend(request.input_ids for request in requests)
        return run(requests, sampling)

    engine.run = recorded
    face.documents(texts)
    prompt = face.embedder.writer.prompt(face.embedder.prompts["document"])
    shown = [ids[len(prompt.prefix_ids) : len(ids) - len(prompt.suffix_ids)] for ids in seen]
    assert sorted(face.embedder.tokenizer.decode(ids) for ids in shown) == sorted(texts)


@every_face
def test_servers_see_no_progress_bars(name: str, make_face: MakeFace, capfd: pytest.CaptureFixture[str]) -> None:
    face = make_face(name)
    face.documents([f"text {n}" for n in range(120)])
    face.query("query")
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""


@every_face
def test_a_live_embedder_is_taken_as_it_is(name: str, make_face: MakeFace, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(system_prompt="Say what it is.", truncate_dim=16)
    face = make_face(name, model=embedder)
    assert face.embedder is embedder
    assert face.documents(TEXTS) == pytest.approx(np.array(embedder.embed_documents(TEXTS)), abs=1e-5)
    if name != "core":
        settings = getattr(getattr(face.native, "document", face.native), "settings", face.native)
        copied = copy.deepcopy(settings)
        assert copied.embedder is not embedder, "only the configuration is copied"
        assert copied.embed_documents(TEXTS) == pytest.approx(np.array(embedder.embed_documents(TEXTS)), abs=1e-5)


@pytest.mark.parametrize("name", FACES[1:])
def test_a_copy_of_a_live_embedder_that_was_trained_does_not_pass_off_the_old_weights(
    name: str, make_face: MakeFace, make_embedder: MakeEmbedder
) -> None:
    import torch

    from grace_retrieval import ModelMismatchError

    embedder = make_embedder()
    with torch.no_grad():
        embedder.writer.model.get_input_embeddings().weight.add_(0.05)
    face = make_face(name, model=embedder)
    face.documents(TEXTS)
    settings = getattr(getattr(face.native, "document", face.native), "settings", face.native)
    with pytest.raises(ModelMismatchError, match="weights"):
        pickle.loads(pickle.dumps(settings)).embed_documents(TEXTS)


@pytest.mark.parametrize("name", FACES[1:])
@pytest.mark.parametrize("wrong", [5, object(), ["grace-nano"]])
def test_an_object_of_the_wrong_kind_is_refused_by_name(name: str, wrong: Any, make_face: MakeFace) -> None:
    with pytest.raises(ValueError, match=rf"is {type(wrong).__name__}: give the name or folder of a model"):
        make_face(name, model=wrong)


@pytest.mark.parametrize("name", FACES[1:])
def test_a_misspelt_option_is_refused(name: str, make_face: MakeFace) -> None:
    with pytest.raises(ValueError, match="sytem_prompt"):
        make_face(name, sytem_prompt="Say what it is.")


@every_face
def test_nothing_warns(name: str, make_face: MakeFace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face = make_face(name)
        face.documents(TEXTS)
        face.query("query")
