"""An index follows its model: moved together, or told where it is; never with another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceIndex, InputError, ModelLoadError, ModelMismatchError
from grace_retrieval.cli import app

TEXTS = ["Tides follow the moon.", "Bread rises by yeast."]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """A folder with corpus, model, and an index of both beside them."""
    pytest.importorskip("faiss", reason="pip install 'grace-retrieval[cpu]'")
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(tiny_policy, folder / "models" / "tiny")
    lines = "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    run(
        "index", "build", folder / "corpus.jsonl", "--out", folder / "index", "--model", folder / "models" / "tiny",
        "--max-new-tokens", "4", "--cache", "none", "--device", "cpu", "-q",
    )  # fmt: skip
    return folder


@pytest.fixture
def moved(built: Path, tmp_path: Path) -> Path:
    """The same at another place, with the model left behind and no more where it was."""
    shutil.copytree(built / "index", tmp_path / "index")
    shutil.copytree(built / "models" / "tiny", tmp_path / "elsewhere")
    manifest = tmp_path / "index" / "manifest.json"
    text = manifest.read_text(encoding="utf-8").replace(str(built / "models"), str(tmp_path / "gone"))
    manifest.write_text(text, encoding="utf-8")
    return tmp_path


def test_an_index_and_the_model_beside_it_are_moved_together(built: Path, moved: Path) -> None:
    assert json.loads((built / "index" / "manifest.json").read_text(encoding="utf-8"))["model_path"] == "../models/tiny"
    (moved / "models").mkdir()
    (moved / "elsewhere").rename(moved / "models" / "tiny")
    hits = json.loads(
        run("index", "search", moved / "index", "moon", "-k", "2", "--json", "--cache", "none", "--device", "cpu")
    )
    with GraceIndex.open(built / "index") as there:
        assert [hit["id"] for hit in hits["hits"]] == there.search("moon", k=2).ids
    # What is written anew names the place where the model is now.
    run("index", "delete", moved / "index", "d1")
    manifest = json.loads((moved / "index" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["embedder"]["model"] == str(moved / "models" / "tiny")
    assert manifest["model_path"] == "../models/tiny"


def test_a_model_that_is_gone_is_said_and_can_be_named(moved: Path) -> None:
    index, model = moved / "index", moved / "elsewhere"
    error = refused("index", "search", index, "moon", "--cache", "none")
    assert str(moved / "gone" / "tiny") in error and "../models/tiny" in error and "(--model)" in error
    options = ("--model", model, "--cache", "none", "--device", "cpu")
    assert "d0" in run("index", "search", index, "moon", *options)
    (moved / "queries.txt").write_text("moon\n", encoding="utf-8")
    run("report", "--index", index, "--queries", moved / "queries.txt", "--html", moved / "page.html", *options)
    assert "d0" in (moved / "page.html").read_text(encoding="utf-8")
    (moved / "more.jsonl").write_text('{"id": "d2", "text": "Glass is made of sand."}\n', encoding="utf-8")
    run("index", "add", moved / "more.jsonl", "--out", index, *options, "-q")
    manifest = json.loads((index / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"] == 3 and manifest["embedder"]["model"] == str(model)
    assert manifest["embedder"]["max_new_tokens"] == 4, "the options are the index's"
    assert len(run("explain", "moon", "--index", index, "-k", "1", "--cache", "none")) > 100


def test_in_python_a_name_will_do(moved: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"there is none any more.*embedder='folder'"):
        _ = GraceIndex.open(moved / "index").embedder
    for name in (moved / "elsewhere", str(moved / "elsewhere")):
        assert GraceIndex.open(moved / "index", embedder=name).search("moon", k=1).ids == ["d0"]
    with pytest.raises(InputError, match="embedder is int: give a GraceEmbedder, or the name or folder"):
        GraceIndex.open(moved / "index", embedder=5)  # type: ignore[arg-type]


def test_another_model_is_refused_by_name(moved: Path) -> None:
    from grace_retrieval import GraceEmbedder

    other = moved / "other"
    GraceEmbedder("grace-nano", cache=None, device="cpu").save_pretrained(str(other))
    error = refused("index", "search", moved / "index", "moon", "--model", other, "--cache", "none", "--device", "cpu")
    assert str(other) in error and "cannot be compared" in error
    with pytest.raises(ModelMismatchError, match="cannot be compared"):
        GraceIndex.open(moved / "index", embedder=str(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", "9"], "leave out --max-new-tokens"),
        (["--truncate-dim", "8"], "leave out --truncate-dim"),
        (["--no-rationale"], "leave out --no-rationale"),
    ],
)
def test_options_that_an_index_has_settled_are_refused(built: Path, options: list[str], message: str) -> None:
    assert message in refused("index", "build", built / "corpus.jsonl", "--out", built / "index", "--add", *options)
