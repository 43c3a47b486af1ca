"""`grace embed`: what comes out for each input, output and option, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grace_retrieval.cli import app

if TYPE_CHECKING:
    from click.testing import Result

TEXTS = [
    "Why do tides follow the moon?",
    "日本語のテキスト 🦊",
    "  blanks at both ends  ",
    'a "quoted" word, and a comma',
    "twice",
    "a line separator \u2028 and a tab\t.",
    "twice",
    "long " * 40,
]
ROWS = [{"id": f"d{number}", "title": f"T{number}", "text": text} for number, text in enumerate(TEXTS)]


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
def embed(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`embed(*arguments)`: runs `grace embed` with tiny-policy and short rationales in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, input: bytes | None = None, fails: bool = False) -> Result:
        options = ["--model", str(tiny_policy), "--max-new-tokens", "5", "--batch", "3"]
        result = CliRunner().invoke(app, ["embed", *options, *map(str, arguments)], input=input)
        assert result.exit_code == (1 if fails else 0), result.output
        if fails:
            assert result.stdout == ""
            assert result.stderr.splitlines()[-1].startswith("Error: ")
        return result

    return run


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [row["text"] if path.suffix == ".txt" else json.dumps(row) for row in rows]
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def vectors(table: pa.Table) -> np.ndarray:
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_every_format_gives_what_the_library_gives(
    embed: Callable[..., Result], make_embedder: Callable[..., Any], suffix: str
) -> None:
    result = embed(write(f"in{suffix}", ROWS), "out.parquet", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout).items() >= {"rows": 8, "dim": 32, "skipped": 0, "resumed": 0, "cut": 8}.items()
    table = pq.read_table("out.parquet")
    assert table.schema.names == ["id", "text", "rationale", "truncated", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    assert table["text"].to_pylist() == TEXTS
    assert table["id"].to_pylist() == [str(n) if suffix == ".txt" else f"d{n}" for n in range(8)]
    embedder = make_embedder(max_new_tokens=5)
    rationales = embedder.rationales(TEXTS, "document")
    assert table["rationale"].to_pylist() == [rationale.text for rationale in rationales]
    assert table["truncated"].to_pylist() == [rationale.truncated for rationale in rationales]
    assert np.allclose(vectors(table), embedder.encode_document(TEXTS), atol=1e-5)
    described = json.loads(table.schema.metadata[b"grace"])["fingerprint"]
    assert described["digest"] == embedder.fingerprint("document").digest().hex()
    assert not Path("out.parquet.parts").exists()


def test_an_array_has_the_rows_of_the_table(embed: Callable[..., Result]) -> None:
    write("in.jsonl", ROWS)
    embed("in.jsonl", "out.parquet")
    assert embed("in.jsonl", "out.npy", "--quiet").output == ""
    array = np.load("out.npy")
    assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.dtype("<f4"), (8, 32), True)
    assert np.array_equal(array, vectors(pq.read_table("out.parquet")))
    np.save("same.npy", array)
    assert Path("out.npy").read_bytes() == Path("same.npy").read_bytes()


def test_standard_input_gives_the_same_file(embed: Callable[..., Result]) -> None:
    content = write("in.csv", ROWS).read_bytes()
    embed("in.csv", "a.parquet")
    embed("-", "b.parquet", "--format", "csv", input=content)
    assert Path("a.parquet").read_bytes() == Path("b.parquet").read_bytes()


@pytest.mark.parametrize("cache", ["default", "none", "own.sqlite"])
def test_counts_and_cache(embed: Callable[..., Result], grace_cache_dir: Path, cache: str) -> None:
    write("in.jsonl", ROWS)
    first = json.loads(embed("in.jsonl", "a.parquet", "--cache", cache, "--json").stdout)
    second = json.loads(embed("in.jsonl", "b.parquet", "--cache", cache, "--json").stdout)
    again = 8 if cache == "none" else 7  # "twice" stands in two parts
    assert (first["generated"], first["from_cache"]) == (again, 8 - again)
    assert (second["generated"], second["from_cache"]) == ((8, 0) if cache == "none" else (0, 8))
    assert Path("a.parquet").read_bytes() == Path("b.parquet").read_bytes()
    assert Path("own.sqlite").exists() == (cache == "own.sqlite")
    assert grace_cache_dir.exists() == (cache == "default")


def test_a_beir_folder_is_read_by_its_rules(embed: Callable[..., Result]) -> None:
    Path("beir").mkdir()
    corpus = [{"_id": "d1", "title": "Tides", "text": "The moon."}, {"_id": 2, "text": "No title."}]
    Path("beir/corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    Path("beir/queries.jsonl").write_text('{"_id": "q", "text": "why"}\n')
    embed("beir", "d.parquet")
    embed("beir", "q.parquet", "--role", "query")
    documents, queries = pq.read_table("d.parquet"), pq.read_table("q.parquet")
    assert documents["id"].to_pylist() == ["d1", "2"]
    assert documents["text"].to_pylist() == ["Tides\n\nThe moon.", "No title."]
    assert queries.select(["id", "text"]).to_pylist() == [{"id": "q", "text": "why"}]


def test_role_titles_text_and_dimensions(embed: Callable[..., Result], make_embedder: Callable[..., Any]) -> None:
    write("in.jsonl", ROWS)
    options = ("--role", "query", "--title-column", "title", "--no-text", "--truncate-dim", 8)
    embed("in.jsonl", "out.parquet", *options)
    table = pq.read_table("out.parquet")
    assert table.schema.names == ["id", "rationale", "truncated", "vector"]
    texts = [f"T{number}\n\n{text}" for number, text in enumerate(TEXTS)]
    expected = make_embedder(max_new_tokens=5, truncate_dim=8).encode_query(texts)
    assert np.allclose(vectors(table), expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(vectors(table), axis=1), 1)
    assert "--truncate-dim 33: the model's vectors have 32" in (
        embed("in.jsonl", "x.npy", "--truncate-dim", 33, fails=True).stderr
    )


def test_without_rationales(embed: Callable[..., Result], make_embedder: Callable[..., Any]) -> None:
    write("in.jsonl", ROWS)
    embed("in.jsonl", "out.parquet", "--no-rationale")
    table = pq.read_table("out.parquet")
    assert table["rationale"].null_count == 8
    expected = make_embedder().encode_document(TEXTS, rationale=False)
    assert np.allclose(vectors(table), expected, atol=1e-5)
    described = json.loads(table.schema.metadata[b"grace"])["fingerprint"]
    assert described["generation"] == {}


@pytest.mark.parametrize("option", [(), ("--no-rationale",)])
def test_shortened_texts_are_reported(embed: Callable[..., Result], option: tuple[str, ...]) -> None:
    write("in.jsonl", [{"text": "word " * 3000}, {"text": "short"}])
    result = embed("in.jsonl", "out.parquet", "--json", *option)
    assert json.loads(result.stdout)["shortened"] == 1
    assert result.stderr.startswith("Warning: 1 texts were longer than the model takes (1024 tokens")
    assert pq.read_table("out.parquet")["text"][0].as_py() == "word " * 3000


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.txt"])
def test_an_empty_file_gives_no_rows(embed: Callable[..., Result], name: str) -> None:
    Path(name).write_bytes(b"")
    embed(name, "out.parquet")
    embed(name, "out.npy")
    table = pq.read_table("out.parquet")
    assert table.schema.names == ["id", "text", "rationale", "truncated", "vector"]
    assert (len(table), table.schema.field("vector").type) == (0, pa.list_(pa.float32(), 32))
    assert np.load("out.npy").shape == (0, 32)


def test_bad_rows_stop_the_run_or_are_skipped(embed: Callable[..., Result]) -> None:
    write("in.jsonl", ROWS)
    lines = Path("in.jsonl").read_text().splitlines()
    Path("in.jsonl").write_text("\n".join([*lines[:2], "{bad", '{"id": "e", "text": " "}', *lines[2:]]))
    assert "in.jsonl, line 3: not JSON" in embed("in.jsonl", "out.parquet", fails=True).stderr
    assert not list(Path().glob("out*"))
    for name, input in (("in.jsonl", None), ("-", Path("in.jsonl").read_bytes())):
        result = embed(name, "out.npy", "--format", "jsonl", "--skip-bad", "--json", "--overwrite", input=input)
        assert json.loads(result.stdout).items() >= {"rows": 8, "skipped": 2}.items()
        assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Warning"] * 3
        assert "line 4: the text is blank" in result.stderr


def test_ids_that_come_again_are_counted(embed: Callable[..., Result]) -> None:
    Path("in.tsv").write_text("a\tone\nb\ttwo\na\tthree\n")
    result = embed("in.tsv", "out.parquet", "--no-rationale", "--json")
    assert json.loads(result.stdout).items() >= {"rows": 3, "repeated_ids": 1}.items()
    assert "Warning: 1 rows have the id of a row before them" in result.stderr
    assert pq.read_table("out.parquet")["text"].to_pylist() == ["one", "two", "three"]


def test_blank_texts_can_be_zeros(embed: Callable[..., Result]) -> None:
    Path("in.txt").write_bytes(b"one\n\nthree\n")
    assert "line 2: the text is blank" in embed("in.txt", "out.parquet", fails=True).stderr
    embed("in.txt", "out.parquet", "--allow-empty")
    table = pq.read_table("out.parquet")
    assert table["rationale"][1].as_py() == ""
    assert np.linalg.norm(vectors(table), axis=1) == pytest.approx([1, 0, 1], abs=1e-6)


def test_a_misnamed_column_is_no_empty_output(embed: Callable[..., Result]) -> None:
    write("in.jsonl", ROWS)
    result = embed("in.jsonl", "out.parquet", "--text-column", "body", "--skip-bad", fails=True)
    assert "All 8 rows of in.jsonl are bad. The first: in.jsonl, line 1: no 'body'" in result.stderr
    piped = Path("in.jsonl").read_bytes()
    options = ("--text-column", "body", "--skip-bad", "--format", "jsonl")
    assert "All 8 rows" in embed("-", "out.parquet", *options, input=piped, fails=True).stderr
    assert not list(Path().glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jsonl", "out.parquet"], "missing.jsonl does not exist"),
        (["in.jsonl", "out.json"], "Name it .parquet (a table) or .npy"),
        (["in.jsonl", "there.parquet"], "there.parquet exists already"),
        (["in.jsonl", "no/out.parquet"], "Make the folder no first"),
        (["in.jsonl", "folder.npy"], "folder.npy is a folder"),
        (["in.parquet", "in.parquet", "--overwrite"], "both input and output"),
        (["in.jsonl", "busy.npy"], "busy.npy.parts is a file"),
        (["-", "out.npy"], "no name to tell its format"),
        (["in.jsonl", "out.npy", "--model", "./nowhere"], "does not exist"),
        (["in.csv", "out.npy", "--id-column", "key"], "no column 'key'"),
        (["in.csv", "out.npy", "--workers", "2"], "--workers would do nothing: they go with --runner ray"),
    ],
)
def test_refusals(embed: Callable[..., Result], arguments: list[str], complaint: str) -> None:
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        write(name, ROWS[:1])
    Path("folder.npy").mkdir()
    for name in ("there.parquet", "busy.npy.parts"):
        Path(name).write_bytes(b"kept")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert complaint in embed(*arguments, fails=True).stderr
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    assert embed("in.jsonl", "there.parquet", "--overwrite").exit_code == 0
    assert len(pq.read_table("there.parquet")) == 1
