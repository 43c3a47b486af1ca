"""`grace embed` killed, interrupted, out of disk, or begun again with something else: nothing is lost or mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grace_retrieval.cli import app

if TYPE_CHECKING:
    from click.testing import Result

resource = pytest.importorskip("resource")

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[2]
PARTS = Path("out.parquet.parts")


@pytest.fixture(autouse=True)
def library_settings() -> Iterator[None]:
    """What the commands silence is heard again by other tests."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    level, shown, silent = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    yield
    logging.set_verbosity(level)
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    (disable_progress_bars if silent else enable_progress_bars)()


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 400 texts of many lengths in an empty folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    lines = [json.dumps({"id": f"x{n}", "text": f"{n} " + "word " * int(rng.integers(1, 40))}) for n in range(400)]
    Path("in.jsonl").write_text("\n".join(lines))
    return Path("in.jsonl")


@pytest.fixture
def arguments(tiny_policy: Path) -> list[str]:
    return ["embed", "--model", str(tiny_policy), "--max-new-tokens", "8", "--batch", "20", "in.jsonl"]


@pytest.fixture
def grace(texts: Path, arguments: list[str]) -> Callable[..., Result]:
    """`grace(*options, output=...)`: runs `grace embed` on the texts."""

    def run(*options: object, output: str = "out.parquet", input: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [*arguments, output, *map(str, options)], input=input)

    return run


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "grace_retrieval", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def finished() -> list[Path]:
    """The finished shards."""
    return sorted(PARTS.glob("[0-9]*.parquet"))


def wait_for_shards(process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 100
    while len(finished()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def unfinished(grace: Callable[..., Result]) -> None:
    """All 20 shards of the texts, which a full disk kept from being merged."""
    with largest_file(20_000):
        assert "Cannot write" in grace("--cache", "none").stderr
    assert len(finished()) == 20


def test_killed_and_interrupted(grace: Callable[..., Result], arguments: list[str]) -> None:
    with started(*arguments, "out.parquet") as process:
        wait_for_shards(process, 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("Interrupted. Finished shards are kept in out.parquet.parts")
    there = len(finished())
    assert 2 <= there < 19
    with started(*arguments, "out.parquet") as process:
        wait_for_shards(process, there + 1)
        process.kill()
    kept = len(finished())
    assert there < kept < 20
    (PARTS / "000019-0.parquet.tmp").write_bytes(b"cut")
    summary = json.loads(grace("--json").stdout)
    assert (summary["rows"], summary["resumed"]) == (400, kept * 20)
    assert not PARTS.exists()
    assert grace("--cache", "none", output="whole.parquet").exit_code == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_a_shard_begun_again_gives_the_same_bits(grace: Callable[..., Result], texts: Path) -> None:
    # What an interrupted run leaves in the cache: the first of the chunks in which a shard is embedded.
    lines = sorted(texts.read_text().splitlines(), key=lambda line: len(json.loads(line)["text"]), reverse=True)
    content = texts.read_bytes()
    texts.write_text("\n".join(lines[:128]))
    assert grace("--batch", 400, output="chunk.npy").exit_code == 0
    texts.write_bytes(content)
    summary = json.loads(grace("--batch", 400, "--json").stdout)
    assert (summary["from_cache"], summary["generated"]) == (128, 272)
    assert grace("--batch", 400, "--cache", "none", output="whole.parquet").exit_code == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_spoilt_shards_are_made_again_and_no_others(grace: Callable[..., Result], unfinished: None) -> None:
    short, changed = finished()[7], finished()[9]
    short.write_bytes(short.read_bytes()[:-20])
    changed.write_bytes(changed.read_bytes().replace(b"PAR1", b"par1"))
    assert json.loads(grace("--json").stdout)["resumed"] == 360
    assert grace(output="whole.parquet").exit_code == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_other_options_are_refused(grace: Callable[..., Result], unfinished: None) -> None:
    for options, difference in (
        (["--role", "query"], "role: 'query' here, 'document' there"),
        (["--batch", "10"], "batch: 10 here, 20 there"),
        (["--max-new-tokens", "4"], "generation.max_new_tokens: 4 here, 8 there"),
        (["--truncate-dim", "8"], "dimension: 8 here, 32 there"),
        (["--no-rationale"], "rationale: False here, True there"),
        (["--no-text"], "text: False here, True there"),
        (["--title-column", "id"], "title-column: 'id' here, None there"),
    ):
        result = grace(*options)
        assert result.exit_code == 1
        assert difference in result.stderr
        assert "--overwrite" in result.stderr
    assert grace().exit_code == 0
    assert len(pq.read_table("out.parquet")) == 400


def test_unfinished_work_is_discarded_if_asked(grace: Callable[..., Result], unfinished: None) -> None:
    summary = json.loads(grace("--role", "query", "--overwrite", "--json").stdout)
    assert (summary["rows"], summary["resumed"]) == (400, 0)
    assert grace("--role", "query", output="whole.parquet").exit_code == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_another_model_is_refused(
    grace: Callable[..., Result], unfinished: None, make_embedder: Callable[..., Any], tmp_path: Path
) -> None:
    other = make_embedder()
    next(other.writer.model.parameters()).data[0] += 1
    other.save(str(tmp_path / "other"))
    result = grace("--model", tmp_path / "other")
    assert result.exit_code == 1
    assert "weights:" in result.stderr
    assert "tiny-policy" in result.stderr
    assert str(tmp_path / "other") in result.stderr


def test_another_input_is_refused(grace: Callable[..., Result], unfinished: None) -> None:
    content = Path("in.jsonl").read_text()
    Path("in.jsonl").write_text(f"{content}\n{content}")
    assert "input bytes: 101959 here, 50979 there" in grace().stderr
    Path("in.jsonl").write_text(content.replace('"25 word', '"25 WORD'))
    result = grace()
    assert result.exit_code == 1
    assert "in.jsonl differs from it behind text 20" in result.stderr
    assert len(finished()) == 20
    # What is the same is kept.
    assert json.loads(grace("--overwrite", "--json").stdout)["resumed"] == 380
    texts = pq.read_table("out.parquet")["text"].to_pylist()
    assert texts[25].startswith("25 WORD")
    assert len(texts) == 400


def test_a_pipe_goes_on_too(grace: Callable[..., Result], arguments: list[str]) -> None:
    content = Path("in.jsonl").read_bytes().splitlines(keepends=True)
    arguments[-1:] = ["-", "--format", "jsonl"]
    broken = b"".join([*content[:70], b"{bad\n", *content[70:]])
    result = grace(input=broken)
    assert result.exit_code == 1
    assert "standard input, line 71: not JSON" in result.stderr
    assert not PARTS.exists()  # bad rows are found before the first text is embedded
    with largest_file(20_000):
        assert "Cannot write" in grace("--cache", "none", input=b"".join(content)).stderr
    assert "differs from it behind text 40" in grace(input=b"".join(content[:50])).stderr
    assert "differs from it behind text 40" in grace(input=b"".join(content[:40])).stderr
    summary = json.loads(grace("--skip-bad", "--json", input=broken).stdout)
    assert (summary["rows"], summary["resumed"], summary["skipped"]) == (400, 400, 1)


def test_a_full_disk(grace: Callable[..., Result]) -> None:
    grace(output="whole.parquet")
    size = Path("whole.parquet").stat().st_size
    with largest_file(size // 2):
        result = grace()
    assert result.exit_code == 1
    assert "Error: Cannot write out.parquet: " in result.stderr
    assert "too large" in result.stderr
    assert "Finished shards are kept in out.parquet.parts" in result.stderr
    assert not Path("out.parquet").exists()
    assert not list(PARTS.glob("*.tmp"))
    assert json.loads(grace("--json").stdout)["resumed"] == 400
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    with largest_file(1000):
        result = grace("--cache", "none", output="other.parquet")
    assert "Error: Cannot write other.parquet: " in result.stderr
    assert sorted(path.name for path in Path().glob("other*")) == []


def test_two_processes_do_not_share_an_output(grace: Callable[..., Result]) -> None:
    fcntl = pytest.importorskip("fcntl")
    PARTS.mkdir()
    with open(PARTS / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = grace()
        assert result.exit_code == 1
        assert "Another process is writing out.parquet" in result.stderr
        assert PARTS.exists()
    assert grace().exit_code == 0


def test_files_of_others_are_left_alone(grace: Callable[..., Result]) -> None:
    PARTS.mkdir()
    (PARTS / "notes.txt").write_text("mine")
    assert grace().exit_code == 0
    assert [path.name for path in PARTS.iterdir()] == ["notes.txt"]
    assert "exists already" in grace().stderr


def test_parts_of_the_version_before_are_refused_or_discarded(grace: Callable[..., Result]) -> None:
    PARTS.mkdir()
    for name in ("part-00000.parquet", "manifest.json", "lock"):
        (PARTS / name).write_bytes(b"{}")
    result = grace("--model", "nowhere")  # found before a model is looked for
    assert result.exit_code == 1
    assert "holds unfinished work that another version of grace-retrieval made" in result.stderr
    assert sorted(path.name for path in PARTS.iterdir()) == ["lock", "manifest.json", "part-00000.parquet"]
    summary = json.loads(grace("--overwrite", "--json").stdout)
    assert (summary["rows"], summary["resumed"]) == (400, 0)
    assert not PARTS.exists()


def test_a_spoilt_description_is_said(grace: Callable[..., Result], unfinished: None) -> None:
    (PARTS / "job.json").write_text("{}")
    assert "job.json cannot be read" in grace().stderr
    assert json.loads(grace("--overwrite", "--json").stdout)["resumed"] == 400
