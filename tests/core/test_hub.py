"""A model that is not there: folders are said before a hub is asked, and the hub is asked once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grace_retrieval import GraceEmbedder, ModelLoadError


class Hub(ThreadingHTTPServer):
    """A hub that answers everything in one way, and counts how often it was asked."""

    def __init__(self, status: int) -> None:
        self.asked: list[str] = []
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.asked.append(self.path)
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Answer)


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    server = Hub(request.param)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def of_model(hub: Hub) -> list[str]:
    """What was asked about models."""
    return [path for path in hub.asked if path.startswith("/owner/")]


def load(name: str, endpoint: str, tmp_path: Path) -> str:
    """Loads a model in a process that asks a hub; the last line of what it says."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    code = f"from grace_retrieval import GraceEmbedder; GraceEmbedder({name!r}, cache=None)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_that_is_out_of_reach_is_asked_once(hub: Hub, tmp_path: Path) -> None:
    said = load("owner/name", f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert "'owner/name' is no folder under" in said and "is out of reach" in said and str(hub.server_port) in said
    assert of_model(hub) == ["/owner/name/resolve/main/config.json"]


@pytest.mark.parametrize("hub", [404], indirect=True)
def test_a_model_that_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    said = load("owner/name", f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert "The hub has no model 'owner/name', or it is private" in said
    assert len(of_model(hub)) == 1


def test_a_folder_that_is_not_there_is_said_before_a_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "manuals").mkdir(parents=True)
    with pytest.raises(ModelLoadError, match=r"models is a folder here, .*'manual'\. Did you mean manuals"):
        GraceEmbedder("models/manual", cache=None)
    with pytest.raises(ModelLoadError, match="does not exist"):
        GraceEmbedder("./runs/model", cache=None)
