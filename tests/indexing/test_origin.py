"""Given vectors: what their files say, the user's word, and what is found out when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceEmbedder, GraceIndex, VectorIdentity
from grace_retrieval.cli import app
from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.indexing import BuildOptions, Document, build_index
from grace_retrieval.indexing.build import build_with
from grace_retrieval.indexing.encoders import GivenVectors

pytest.importorskip("faiss", reason="pip install 'grace-retrieval[cpu]'")


def grace(*arguments: str | Path) -> str:
    """Standard output; the one line of an error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == len(errors) and len(errors) <= 1, result.output
    return errors[0] if errors else result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora and their vectors by grace-nano without rationales, as `grace embed` writes them."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("first", "second"):
        lines = "".join(json.dumps({"id": f"{name}{i}", "text": f"{name} text, number {i}"}) + "\n" for i in range(3))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        for suffix in ("npy", "parquet"):
            grace(
                "embed",
                folder / f"{name}.jsonl",
                folder / f"{name}.{suffix}",
                "--no-rationale",
                "--cache",
                "none",
                "-q",
            )
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """An index of the first corpus, whose model is known by the file beside the array and the user's word."""
    grace(
        "index", "build", made / "first.jsonl", "--vectors", made / "first.npy", "--model", "grace-nano",
        "--no-rationale", "--out", tmp_path / "index", "--cache", "none", "-q",
    )  # fmt: skip
    return tmp_path / "index"


def test_an_array_says_what_made_it_as_a_table_does(made: Path) -> None:
    beside = json.loads((made / "first.npy.json").read_text(encoding="utf-8"))
    about = json.loads(pq.read_schema(made / "first.parquet").metadata[b"grace"])
    assert beside["fingerprint"] == about["fingerprint"]
    identity = GraceEmbedder("grace-nano", cache=None, device="cpu").vector_identity(rationale=False)
    assert beside["fingerprint"] == identity.document.describe()


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_vectors_of_the_model_get_into_its_index(made: Path, index: Path, suffix: str) -> None:
    source, vectors = ("second.jsonl", made / "second.npy") if suffix == "npy" else ("second.parquet", "vector")
    columns = ["--metadata", "id"] if suffix == "parquet" else []
    grace("index", "add", made / source, "--vectors", vectors, "--out", index, "-q", *columns)
    with GraceIndex.open(index) as opened:
        assert len(opened) == 6
        stored = opened.rows.vectors(np.arange(3, 6))
    np.testing.assert_array_equal(stored, np.load(made / "second.npy"))


def test_a_matrix_of_unknown_origin_needs_the_users_word(made: Path, index: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "foreign.npy", np.load(made / "second.npy"))
    command = ("index", "add", made / "second.jsonl", "--vectors", tmp_path / "foreign.npy", "--out", index)
    error = grace(*command)
    assert "does not say what its vectors were made with" in error and "(--model)" in error and "grace-nano" in error
    grace(*command, "--model", "grace-nano", "--cache", "none", "-q")
    with GraceIndex.open(index) as opened:
        assert len(opened) == 6 and opened.manifest.identity is not None


def test_an_array_that_was_changed_since_is_refused(made: Path, index: Path, tmp_path: Path) -> None:
    array = np.load(made / "second.npy")
    np.save(tmp_path / "second.npy", array[::-1])
    (tmp_path / "second.npy.json").write_bytes((made / "second.npy.json").read_bytes())
    error = grace("index", "add", made / "second.jsonl", "--vectors", tmp_path / "second.npy", "--out", index)
    assert "it was changed since" in error


def test_vectors_of_another_model_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    command = ("index", "build", made / "first.jsonl", "--vectors", made / "first.npy", "--out", tmp_path / "other")
    error = grace(*command, "--model", "grace-nano-base", "--no-rationale", "--cache", "none")
    assert "holds vectors of the model 'grace-nano', not of 'grace-nano-base'" in error


def test_dimension_and_length_are_checked_as_vectors_are_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.load(made / "first.npy")
    for name, matrix in (("narrow", array[:, :16]), ("long", array * 3), ("zero", array * 0), ("half", array / 2)):
        np.save(tmp_path / f"{name}.npy", matrix)

    def build(name: str) -> str:
        return grace(
            "index", "build", made / "first.jsonl", "--vectors", tmp_path / f"{name}.npy", "--model", "grace-nano",
            "--no-rationale", "--out", tmp_path / name, "--cache", "none",
        )  # fmt: skip

    assert "first.jsonl, line 1: the vector has 16 dimensions" in build("narrow")
    assert "the vector has length 3" in build("long") and "the vector has length 0.5" in build("half")
    assert "the vector has length 0" in build("zero")


def test_in_python_too(tmp_path: Path) -> None:
    def documents(dimension: int, start: int = 0) -> list[Document]:
        rng = np.random.default_rng(start)
        return [
            Document(id=f"d{i}", text=f"text {i}", vector=rng.standard_normal(dimension).astype(np.float32))
            for i in range(start, start + 3)
        ]

    build_index(documents(8), tmp_path / "unknown")
    with pytest.raises(ModelMismatchError, match="holds vectors of 8 dimensions, and the new ones have 4"):
        build_index(documents(4, start=3), tmp_path / "unknown", mode="add")
    embedder = GraceEmbedder("grace-nano", cache=None, device="cpu")
    identity: VectorIdentity = embedder.vector_identity()
    with pytest.raises(ModelMismatchError, match="the vector has 8 dimensions"):
        build_with(GivenVectors(identity=identity), documents(8), tmp_path / "claimed", options=BuildOptions())
    with pytest.raises(InputError, match="makes vectors of length 1"):
        build_with(GivenVectors(identity=identity), documents(256), tmp_path / "claimed", options=BuildOptions())
