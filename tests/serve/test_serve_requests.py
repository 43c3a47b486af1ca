"""What requests may hold, and how they are refused: in the dialect of the client, with the mend, and without a path."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceEmbedder
from grace_retrieval.cli import app
from grace_retrieval.cli.logs import start_logging
from grace_retrieval.serve.command import _log_to_stderr
from grace_retrieval.serve.door import json_response
from tests.serve.conftest import DOCUMENTS, MARKUP, TEXTS, Local, ask, local_server

NAME = "tiny-policy"
EMBEDDINGS, EMBED = "/v1/embeddings", "/embed"


def check_error(answer: Any, status: int, message: str, *, path: str) -> None:
    assert answer.status == status, answer.body
    error = answer.json
    if path == EMBED:
        assert set(error) == {"error", "error_type"}
    else:
        assert set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}
    assert message in answer.message, answer.message
    text = answer.body.decode()
    assert "Traceback" not in text and ".py" not in text and str(Path.home()) not in text and "/tmp" not in text
    assert answer.headers["x-request-id"]


BOTH: list[tuple[bytes, int, int, str]] = [
    (b"{", 400, 422, "The body is no JSON"),
    (b"", 400, 422, "The body is no JSON"),
    (b"\xff\xfe{}", 400, 422, "The body is"),
    (b"[1, 2]", 400, 422, "The body is a list: send a JSON object with"),
    (b"[" * 200_000, 400, 422, "nested too deeply"),
    (b'{"INPUT": [], "model": "tiny-policy"}', 400, 400, "INPUT is an empty list: give at least one text"),
    (b'{"INPUT": 5, "model": "tiny-policy"}', 400, 422, "INPUT is a number: give a string or a list of strings"),
    (b'{"INPUT": ["a", null], "model": "tiny-policy"}', 400, 422, "INPUT[1] is missing: give a string"),
    (b'{"model": "tiny-policy"}', 400, 422, "INPUT is missing"),
    (b'{"INPUT": "x", "dimensions": NaN}', 400, 422, "The body holds NaN, which is no JSON"),
    (b'{"INPUT": "x", "dimensions": 0}', 400, 422, "dimensions=0: give a whole number from 1 to 32"),
    (b'{"INPUT": "x", "dimensions": 33}', 400, 422, "dimensions=33: give a whole number from 1 to 32"),
    (b'{"INPUT": "x", "dimensions": true}', 400, 422, "dimensions=True: give a whole number"),
    (b'{"INPUT": "x", "dimensions": 1e400}', 400, 422, "dimensions=inf: give a whole number"),
    (b'{"INPUT": "x", "dimension": 3}', 400, 422, "Unknown field 'dimension': this route takes INPUT"),
    (b'{"INPUT": "x", "truncate": "yes"}', 400, 422, "truncate='yes': give true or false"),
    (json.dumps({"INPUT": ["x"] * 10_000}).encode(), 413, 413, "INPUT has 10000 items, and this server takes 100"),
    (json.dumps({"INPUT": "ab " * 700_000}).encode(), 400, 413, "INPUT[0]: longer than the"),
    (json.dumps({"INPUT": "a " * 2_000_000}).encode(), 413, 413, "The body has more than 3145728 bytes"),
    (
        json.dumps({"INPUT": ["tide " * 900] * 100, "truncate": True}).encode(),
        413,
        413,
        "tokens or more, and this server",
    ),
]


@pytest.mark.parametrize(("body", "status", "tei_status", "message"), BOTH)
def test_bodies_that_cannot_be_used_in_both_dialects(
    local: Local, body: bytes, status: int, tei_status: int, message: str
) -> None:
    for path, field, expected in ((EMBEDDINGS, b"input", status), (EMBED, b"inputs", tei_status)):
        sent = body.replace(b"INPUT", field)
        if path == EMBED:
            sent = sent.replace(b', "model": "tiny-policy"', b"").replace(b'"model": "tiny-policy"', b"")
        check_error(ask(local.url + path, sent), expected, message.replace("INPUT", field.decode()), path=path)
    assert local.service.admission.requests == local.service.admission.bytes == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (EMBEDDINGS, {"input": "x", "model": "gpt"}, 404, "model='gpt' is not served here: give 'tiny-policy'"),
        (EMBEDDINGS, {"input": "x", "model": 5}, 404, "model=5 is not served here"),
        (EMBEDDINGS, {"input": "x", "model": f"{NAME}:query", "input_type": "document"}, 400, "name two roles"),
        (EMBEDDINGS, {"input": "x", "input_type": "passage"}, 400, "input_type='passage': give 'query' or 'document'"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "int8"}, 400, "give 'float' or 'base64'"),
        (EMBEDDINGS, {"input": [1, "x"]}, 400, "input[0] is no list of token ids"),
        (EMBEDDINGS, {"input": [[1], [True]]}, 400, "input[1] is no list of token ids"),
        (EMBEDDINGS, {"input": [[1]], "tokenizer": "gpt2"}, 400, "tokenizer='gpt2'. Send strings"),
        (EMBED, {"inputs": "x", "prompt_name": "passage"}, 422, "prompt_name='passage'"),
        (EMBED, {"inputs": "x", "truncation_direction": "left"}, 422, "give 'right'"),
        ("/rationale", {"texts": "x", "role": "other"}, 400, "role='other'"),
        ("/explain", {"query": " ", "documents": ["x"]}, 400, "query is blank"),
        ("/explain", {"query": "x"}, 400, "Give documents (texts), or ids"),
        ("/explain", {"query": "x", "documents": "y", "ids": ["d0"]}, 400, "one of them"),
        ("/explain", {"query": "x", "ids": ["d0", "nowhere"]}, 404, "the index has no document 'nowhere'"),
        ("/explain", {"query": "x", "ids": "d0"}, 400, "ids is no list of strings"),
        ("/explain", {"query": "x", "documents": ["y"] * 51}, 413, "documents has 51 items"),
        ("/search", {"query": 3}, 400, "query is a number"),
        ("/search", {"query": "x", "k": 101}, 400, "k=101: give a whole number from 1 to 100"),
        ("/search", {"query": "x", "filter": ["kind"]}, 400, "filter is no object"),
        ("/search", {"query": "x", "filter": {"kind": {"a": 1}}}, 400, "give a value, or a list of values"),
        ("/search", {"query": "x", "filter": {"colour": "red"}}, 400, "no document has metadata 'colour'. Give one of"),
        ("/nowhere", {}, 404, "There is no /nowhere here"),
        ("/metrics", {}, 405, "/metrics does not take POST: it takes GET, HEAD"),
    ],
)
def test_requests_that_cannot_be_answered(local: Local, path: str, body: Any, status: int, message: str) -> None:
    check_error(ask(local.url + path, body), status, message, path=path)


def test_only_json_is_read_as_a_page_elsewhere_could_send_the_rest(local: Local) -> None:
    body = b'{"input": "x"}'
    for media in ("text/plain", "application/x-www-form-urlencoded"):
        check_error(ask(local.url + EMBEDDINGS, body, Content_Type=media), 415, "Content-Type", path=EMBEDDINGS)
    answer = ask(local.url + EMBEDDINGS, body, Content_Encoding="gzip")
    check_error(answer, 415, "Compressed bodies are not read", path=EMBEDDINGS)
    answer = ask(local.url + EMBEDDINGS, body, Origin="http://elsewhere.example")
    assert answer.status == 200 and not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.fixture
def impatient(serve_embedder: GraceEmbedder) -> Iterator[Local]:
    """A server that waits for nobody."""
    with local_server(serve_embedder, body_seconds=0.3) as started:
        yield started


def test_a_body_that_comes_too_slowly_is_not_waited_for(impatient: Local) -> None:
    host, port = impatient.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        lines = (
            "POST /v1/embeddings HTTP/1.1",
            f"Host: {host}",
            "Content-Type: application/json",
            "Content-Length: 99",
        )
        slow.sendall("\r\n".join([*lines, "", '{"input": ']).encode())
        answer = b""
        while piece := slow.recv(4096):  # until the server hangs up
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not come within 0.3 s" in answer
    assert impatient.service.admission.requests == impatient.service.admission.bytes == 0


def test_a_head_that_never_ends_is_not_waited_for(impatient: Local, local: Local) -> None:
    host, port = impatient.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"GET /live HTTP/1.1\r\nHost: ")
        assert slow.recv(4096) == b"", "the server hangs up"
    with socket.create_connection((host, int(local.url.rpartition(":")[2])), timeout=30) as large:
        large.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 100_000)
        assert large.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_is_refused_hears_of_it_however_much_it_sends(serve_embedder: GraceEmbedder) -> None:
    large = b'{"input": "' + b"x" * (4 << 20) + b'"}'
    with local_server(serve_embedder, api_keys=("key",), max_body=1 << 20) as local:
        check_error(ask(local.url + EMBEDDINGS, large), 401, "The key is missing", path=EMBEDDINGS)
        check_error(ask(f"{local.url}/metrics", large, Authorization="Bearer key"), 405, "takes GET", path=EMBEDDINGS)
        answer = ask(local.url + EMBEDDINGS, large, Authorization="Bearer key")
        check_error(answer, 413, "The body has more than 1048576 bytes", path=EMBEDDINGS)


def test_a_key_is_asked_for_in_the_dialect_of_the_client(serve_embedder: GraceEmbedder) -> None:
    import openai

    with local_server(serve_embedder, api_keys=("first", "second")) as local:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic first"},
            {"Authorization": "first"},
        ):
            for path, field in ((EMBEDDINGS, "input"), (EMBED, "inputs"), ("/search", "query")):
                check_error(ask(local.url + path, {field: "x"}, **given), 401, "The key is missing or wrong", path=path)
        for path in ("/metrics", "/info", "/v1/models"):
            assert ask(local.url + path).status == 401
        for path in ("/", "/live", "/ready", "/health", "/page.css", "/page.js"):
            assert ask(local.url + path).status == 200
        with openai.OpenAI(base_url=f"{local.url}/v1", api_key="first") as client:
            assert len(client.embeddings.create(model=NAME, input="x").data) == 1
        with (
            openai.OpenAI(base_url=f"{local.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.embeddings.create(model=NAME, input="x")


def test_a_name_that_was_pointed_at_loopback_is_refused(serve_embedder: GraceEmbedder) -> None:
    with local_server(serve_embedder, hosts=("localhost", "127.0.0.1")) as local:
        assert ask(f"{local.url}/live").status == 200
        check_error(ask(f"{local.url}/info", Host="evil.example:80"), 421, "Host 'evil.example:80' is not", path=EMBED)


def test_a_log_line_has_an_id_and_no_text_unless_asked(
    serve_embedder: GraceEmbedder, local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="grace_retrieval.serve")
    secret = "a secret\nline"
    answer = ask(local.url + EMBEDDINGS, {"input": [secret, "b"]}, X_Request_Id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    assert ask(local.url + EMBEDDINGS, {"input": "b"}, X_Request_Id="not; good").headers["x-request-id"] != "not; good"
    with local_server(serve_embedder, log_texts=True) as telling:
        ask(telling.url + EMBEDDINGS, {"input": [secret]})
    lines = [record.getMessage() for record in caplog.records if record.name == "grace_retrieval.serve"]
    assert len(lines) == 3 and lines[0].startswith("POST /v1/embeddings 200 ") and "id=mine-1 texts=2" in lines[0]
    assert "secret" not in lines[0] + lines[1]
    assert lines[2].endswith(r"text='a secret\nline'") and "\n" not in lines[2]


def test_what_fails_inside_is_told_to_the_log_alone(
    serve_embedder: GraceEmbedder, local: Local, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("/home/somebody/model is broken")

    monkeypatch.setattr(serve_embedder.pipeline, "write", broken)
    for path, field, status in ((EMBEDDINGS, "input", 500), (EMBED, "inputs", 500)):
        answer = ask(local.url + path, {field: "x"}, X_Request_Id="broken")
        check_error(answer, status, "Its log has more, under id=broken", path=path)
        assert b"somebody" not in answer.body
    assert "/home/somebody/model is broken" in caplog.text and "id=broken" in caplog.text


@pytest.mark.parametrize("mode", [True, False, "echo"])
def test_what_is_embedded_behind_a_text_can_be_chosen(local: Local, serve_embedder: GraceEmbedder, mode: Any) -> None:
    found = ask(local.url + EMBEDDINGS, {"input": TEXTS, "rationale": mode, "input_type": "query"}).json["data"]
    expected = serve_embedder.encode_query(TEXTS, rationale=mode)
    assert [one["embedding"] for one in found] == [pytest.approx(vector.tolist(), abs=2e-6) for vector in expected]
    assert mode is True or abs(expected - serve_embedder.encode_query(TEXTS)).max() > 0.01


# ---------------------------------------------------------------------- routes of our own


def test_numbers_that_json_lacks_are_null() -> None:
    answer = json_response({"metadata": {"a": float("nan"), "b": [1.5, float("-inf")]}})
    assert json.loads(answer.body, parse_constant=pytest.fail) == {"metadata": {"a": None, "b": [1.5, None]}}


def test_rationales_are_labelled_and_those_of_the_embedder(local: Local, serve_embedder: GraceEmbedder) -> None:
    found = ask(f"{local.url}/rationale", {"texts": TEXTS, "role": "query"}).json
    wrote = serve_embedder.rationales(TEXTS, "query")
    assert [one["text"] for one in found["rationales"]] == [one.text for one in wrote]
    assert {one["written_by"] for one in found["rationales"]} == {"model"}
    again = ask(f"{local.url}/rationale", {"texts": [*TEXTS, "never seen before"], "role": "query"}).json
    assert [one["cached"] for one in again["rationales"]] == [True] * len(TEXTS) + [False]


@pytest.mark.parametrize("hybrid", [False, True])
def test_search_finds_what_the_index_finds(local: Local, hybrid: bool) -> None:
    index = local.service.index
    assert index is not None
    for wanted in (None, {"kind": "sea"}, {"n": [1, 2]}):
        body = {"query": "glass and sand", "k": 3, "filter": wanted, "hybrid": hybrid}
        found = ask(f"{local.url}/search", body).json
        expected = index.search("glass and sand", 3, filter=wanted, hybrid=hybrid)
        assert [hit["id"] for hit in found["hits"]] == expected.ids
        assert [hit["score"] for hit in found["hits"]] == pytest.approx(expected.scores.tolist(), abs=2e-6)
        assert [hit["rationale"]["text"] for hit in found["hits"]] == [one.text for one in expected.rationales]
        assert found["query_rationale"]["written_by"] == "model" and found["documents"] == len(DOCUMENTS)


def test_explanations_are_those_of_the_embedder(local: Local, serve_embedder: GraceEmbedder) -> None:
    query = "what lifts dough?"
    expected = serve_embedder.explain(query, TEXTS)
    found = ask(f"{local.url}/explain", {"query": query, "documents": TEXTS}).json["explanations"]
    assert [one["score"] for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)
    index = local.service.index
    assert index is not None
    hits = {hit.id: hit for hit in index.search(query, 4).hits}
    by_id = ask(f"{local.url}/explain", {"query": query, "ids": ["d3", "d1"]}).json["explanations"]
    assert [one["id"] for one in by_id] == ["d3", "d1"]
    assert [one["score"] for one in by_id] == pytest.approx([hits["d3"].score, hits["d1"].score], abs=1e-5)
    assert by_id[0]["document"]["rationale"] == hits["d3"].rationale.text


def test_explanations_as_html_keep_markup_as_text(local: Local) -> None:
    body = {"query": "markup", "documents": TEXTS[3]}
    page = ask(f"{local.url}/explain", body, Accept="text/html,*/*;q=0.1")
    assert page.headers["content-type"].startswith("text/html") and page.body.startswith(b"<!DOCTYPE html>")
    assert ask(f"{local.url}/explain", {**body, "format": "html"}).body == page.body
    (fragment,) = ask(f"{local.url}/explain", {**body, "format": "fragment"}).json["explanations"]
    for html in (page.body.decode(), fragment["html"]):
        assert MARKUP not in html and "onerror=" not in html.replace("onerror=&#39;", "") and "&lt;" in html


def test_lone_surrogates_and_odd_characters_pass(local: Local, serve_embedder: GraceEmbedder) -> None:
    sent = rb'{"input": ["\ud800 tide", "\u0000\u202e\ud83c\udf0a"], "model": "tiny-policy"}'
    found = ask(local.url + EMBEDDINGS, sent).json["data"]
    expected = serve_embedder.encode_document(["\ufffd tide", "\x00\u202e🌊"])
    assert [one["embedding"] for one in found] == [pytest.approx(vector.tolist(), abs=2e-6) for vector in expected]
    answer = ask(f"{local.url}/search", rb'{"query": "\ud800 tide"}')
    assert answer.status == 200 and answer.json["query"] == "\ufffd tide"


# ---------------------------------------------------------------------- starting


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid'"),
        (["--index", "nowhere"], "nowhere has no index"),
        (["--api-key", "nowhere"], "--api-key 'nowhere' cannot be read"),
        (["--max-body", "much"], "--max-body 'much' is no size"),
        (["--max-queue", "0"], "--max-queue"),
        (["--max-body", "1GB"], "no such body would ever be let in"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert result.exit_code in (1, 2) and message in result.stderr and "Traceback" not in result.output


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(local: Local) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", local.url.rpartition(":")[2], "--model", "nowhere/at/all"])
    assert result.exit_code == 1 and "cannot be listened at" in result.stderr


def test_an_index_of_another_model_is_refused_by_name(index_folder: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--index", str(index_folder), "--model", "grace-nano"])
    assert result.exit_code == 1 and "grace-nano" in result.stderr and "tiny-policy" in result.stderr


def test_json_lines_are_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("grace_retrieval", "grace_retrieval.serve", "uvicorn.error")
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in names}
    try:
        start_logging(verbose=False, json_lines=True)
        _log_to_stderr(quiet=False)
        logging.getLogger("grace_retrieval.serve").info("POST /embed 200")
        logging.getLogger("uvicorn.error").warning("a warning")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        start_logging(verbose=False, json_lines=False)
        for name, (handlers, level) in before.items():
            logging.getLogger(name).handlers[:] = handlers
            logging.getLogger(name).setLevel(level)
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "POST /embed 200"),
        ("warning", "a warning"),
    ]
