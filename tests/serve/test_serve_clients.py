"""Real clients against a server process: their vectors are GraceEmbedder's, in both roles."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder
from grace_retrieval.cache import SQLiteCache, cache_path
from grace_retrieval.serve.service import model_name
from tests.serve.conftest import TEXTS, Answer, Process, ask, serve

NAME = "tiny-policy"


def check(found: Sequence[Sequence[float]], embedder: GraceEmbedder, role: str, texts: Sequence[str] = TEXTS) -> None:
    encode = embedder.encode_query if role == "query" else embedder.encode_document
    other = embedder.encode_document if role == "query" else embedder.encode_query
    np.testing.assert_allclose(np.asarray(found, dtype=np.float32), encode(list(texts)), atol=2e-6)
    assert not np.allclose(found, other(list(texts)), atol=1e-3), "the roles could not be told apart"


def test_the_server_is_known_by_the_folders_name_alone(serve_embedder: GraceEmbedder) -> None:
    assert model_name(serve_embedder) == NAME


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openai(process: Process, serve_embedder: GraceEmbedder, role: str, encoding: Any) -> None:
    import openai

    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        options = {} if encoding is None else {"encoding_format": encoding}
        found = client.embeddings.create(model=f"{NAME}:{role}", input=TEXTS, **options)
        vectors: Any = [one.embedding for one in found.data]
        if encoding == "base64":  # asked for by name, the client hands it on as it came
            vectors = [np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in vectors]
        check(vectors, serve_embedder, role)
        assert found.model == f"{NAME}:{role}" and found.usage.total_tokens > found.usage.prompt_tokens > 0
        by_type = client.embeddings.create(model=NAME, input=TEXTS[0], dimensions=5, extra_body={"input_type": role})
        encode = serve_embedder.encode_query if role == "query" else serve_embedder.encode_document
        np.testing.assert_allclose(by_type.data[0].embedding, encode(TEXTS[0], truncate_dim=5), atol=2e-6)


async def test_openai_asynchronous(process: Process, serve_embedder: GraceEmbedder) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="none") as client:
        found = await client.embeddings.create(model=NAME, input=TEXTS)
        check([one.embedding for one in found.data], serve_embedder, "document")
        names = [model.id async for model in client.models.list()]
        assert names == [NAME, f"{NAME}:query", f"{NAME}:document"]
        assert (await client.models.retrieve(f"{NAME}:query")).owned_by == "grace-retrieval"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.embeddings.create(model="text-embedding-3-small", input="x")
        assert caught.value.code == "model_not_found" and NAME in str(caught.value)


def test_openai_token_ids_of_our_tokenizer(process: Process, serve_embedder: GraceEmbedder) -> None:
    import openai

    ids = [serve_embedder.pipeline.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model=NAME, input=ids, extra_body={"tokenizer": NAME})
        check([one.embedding for one in found.data], serve_embedder, "document")
        one = client.embeddings.create(model=NAME, input=ids[0], extra_body={"tokenizer": NAME})
        np.testing.assert_array_equal(one.data[0].embedding, found.data[0].embedding)
        with pytest.raises(openai.BadRequestError, match=r"OpenAIEmbeddings\(check_embedding_ctx_length=False\)"):
            client.embeddings.create(model=NAME, input=ids)
        with pytest.raises(openai.BadRequestError, match="token id 99999"):
            client.embeddings.create(model=NAME, input=[99999], extra_body={"tokenizer": NAME})


@pytest.mark.parametrize("role", ["query", "document"])
def test_langchain_openai(process: Process, serve_embedder: GraceEmbedder, role: str) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model=f"{NAME}:{role}", base_url=f"{process.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    check(embeddings.embed_documents(TEXTS), serve_embedder, role)
    check([embeddings.embed_query(text) for text in TEXTS], serve_embedder, role)
    by_type = OpenAIEmbeddings(
        model=NAME,
        base_url=f"{process.url}/v1",
        api_key="none",
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"input_type": role}},
    )
    check(by_type.embed_documents(TEXTS), serve_embedder, role)


def test_langchain_openai_as_it_comes_is_told_its_switch(
    process: Process, serve_embedder: GraceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends ids of tiktoken's tokens. The encoding would be downloaded; an empty one of its kind has the bytes."""
    import openai
    import tiktoken
    from langchain_openai import OpenAIEmbeddings

    plain = tiktoken.Encoding(
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: plain)
    embeddings = OpenAIEmbeddings(model=NAME, base_url=f"{process.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings.embed_query(TEXTS[0])


@pytest.mark.parametrize("role", ["query", "document"])
def test_llama_index_openai_like(process: Process, serve_embedder: GraceEmbedder, role: str) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedding = OpenAILikeEmbedding(model_name=f"{NAME}:{role}", api_base=f"{process.url}/v1", api_key="none")
    check(embedding.get_text_embedding_batch(TEXTS), serve_embedder, role)
    check([embedding.get_query_embedding(text) for text in TEXTS], serve_embedder, role)


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("path", ["", "/embed"])
def test_huggingface_hub(
    process: Process, serve_embedder: GraceEmbedder, role: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it keeps from its own hub, and from our server too
    client = InferenceClient(f"{process.url}{path}")
    found = client.feature_extraction(TEXTS, prompt_name=role, normalize=True)  # type: ignore[arg-type]
    check(found, serve_embedder, role)
    check(client.feature_extraction(TEXTS[0], prompt_name=role), serve_embedder, role, TEXTS[:1])


@pytest.mark.parametrize("role", ["query", "document"])
def test_haystack_openai(process: Process, serve_embedder: GraceEmbedder, role: str) -> None:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options: Any = {
        "model": f"{NAME}:{role}",
        "api_base_url": f"{process.url}/v1",
        "api_key": Secret.from_token("none"),
    }
    documents = OpenAIDocumentEmbedder(**options, progress_bar=False).run([Document(content=text) for text in TEXTS])
    check([document.embedding for document in documents["documents"]], serve_embedder, role)
    text = OpenAITextEmbedder(**options)
    check([text.run(one)["embedding"] for one in TEXTS], serve_embedder, role)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("role", ["query", "document"])
def test_curl(process: Process, serve_embedder: GraceEmbedder, role: str) -> None:
    def curl(path: str, body: Any) -> Any:
        command = ["curl", "-sS", "--fail", f"{process.url}{path}", "--json", json.dumps(body)]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    found = curl("/v1/embeddings", {"model": NAME, "input": TEXTS, "input_type": role})
    check([one["embedding"] for one in found["data"]], serve_embedder, role)
    check(curl("/embed", {"inputs": TEXTS, "prompt_name": role}), serve_embedder, role)


def test_tei_options(process: Process, serve_embedder: GraceEmbedder) -> None:
    """A text that is too long is refused or cut, as it is asked; vectors come at their own length if that is asked."""
    long = "tide " * 3000
    refused = ask(f"{process.url}/embed", {"inputs": ["short", long]})
    assert (refused.status, refused.json["error_type"]) == (413, "Validation")
    assert refused.message.startswith("inputs[1]: longer than the ")
    (cut,) = ask(f"{process.url}/embed", {"inputs": long, "truncate": True}).json
    np.testing.assert_allclose(cut, serve_embedder.encode_document(long), atol=2e-6)
    raw = np.array(ask(f"{process.url}/embed", {"inputs": TEXTS, "normalize": False}).json)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 0.01
    check((raw / lengths).tolist(), serve_embedder, "document")
    info = ask(f"{process.url}/info").json
    assert info["model_id"] == NAME and info["dimension"] == 32 and info["prompts"] == ["query", "document"]
    assert info["index"]["documents"] == len(TEXTS) and info["index"]["filters"]["kind"] == ["food", "sea"]
    for path in ("/embed_all", "/rerank"):
        answer = ask(f"{process.url}{path}", {"inputs": "x"})
        assert answer.status == 424 and path in answer.message and answer.json["error_type"] == "Backend"


def test_a_blank_text_is_zeros(process: Process) -> None:
    found = ask(f"{process.url}/v1/embeddings", {"input": ["", "  \n"], "model": NAME}).json
    assert [one["embedding"] for one in found["data"]] == [[0.0] * 32] * 2


# ---------------------------------------------------------------------- how it ends


def send_later(process: Process, texts: list[str], answers: list[Answer]) -> threading.Thread:
    """Send texts on a thread; the answer is added when it comes."""

    def send() -> None:
        try:
            answers.append(ask(f"{process.url}/embed", {"inputs": texts}))
        except OSError:  # the server was killed
            pass

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def metric(process: Process, name: str) -> float:
    lines = ask(f"{process.url}/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def wait_for(process: Process, name: str, least: float) -> None:
    end = time.monotonic() + 60
    while metric(process, name) < least:
        assert time.monotonic() < end, f"{name} never came to {least}"


def check_stopping(started: Process, serve_embedder: GraceEmbedder) -> None:
    """It finishes what it has, refuses what comes, and ends without an error."""
    texts = [f"stopping {number}" for number in range(2000)]
    answers: list[Answer] = []
    batches = metric(started, "grace_batch_texts_count")
    thread = send_later(started, texts, answers)
    wait_for(started, "grace_batch_texts_count", batches + 1)
    host, port = started.url.removeprefix("http://").split(":")
    started.popen.send_signal(signal.SIGTERM)
    refused: Any = None
    while refused is None:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except ConnectionRefusedError as error:
            refused = error
        assert refused is not None or thread.is_alive(), "it was done before it refused: send more texts"
    thread.join()
    assert answers[0].status == 200 and len(answers[0].json) == len(texts)
    np.testing.assert_allclose(answers[0].json[:5], serve_embedder.encode_document(texts[:5]), atol=2e-6)
    assert started.popen.wait(timeout=60) == 0
    assert not [line for line in started.lines if "Traceback" in line or "ERROR" in line]


def test_killed_while_it_writes_and_stopped_while_it_works(process: Process, serve_embedder: GraceEmbedder) -> None:
    """The last test of this file: it ends the process that the others share."""
    answered = [f"answered {number}" for number in range(64)]
    cut_off = [f"cut off {number}" for number in range(2000)]
    answers: list[Answer] = []
    assert ask(f"{process.url}/embed", {"inputs": answered}).status == 200
    thread = send_later(process, cut_off, answers)
    wait_for(process, "grace_batch_texts_count", metric(process, "grace_batch_texts_count") + 3)
    process.popen.send_signal(signal.SIGKILL)
    thread.join()
    assert not answers and process.popen.wait() == -signal.SIGKILL
    file = cache_path(process.arguments[process.arguments.index("--cache") + 1])
    with SQLiteCache(file) as cache:
        assert cache.verify().ok and len(cache) >= len(answered) + 2 * 128

    with serve(*process.arguments) as started:
        found = ask(f"{started.url}/rationale", {"texts": [*answered, *cut_off[:128]]}).json["rationales"]
        assert [one["cached"] for one in found] == [True] * (64 + 128)
        check_stopping(started, serve_embedder)
    with SQLiteCache(file) as cache:
        assert cache.verify().ok
