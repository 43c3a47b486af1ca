"""`grace index` from the shell."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceEmbedder, GraceIndex
from grace_retrieval.cli import app
from grace_retrieval.cli.options import parse_bytes
from grace_retrieval.errors import InputError
from tests.indexing.conftest import WORDS, make_documents, stored_rows, unit

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).parents[2]


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
def grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`grace(*arguments)`: runs `grace index` in a folder with in.jsonl of 20 texts."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": f"x{n}", "text": f"{WORDS[n % 16]} number {n}", "n": n % 4}) for n in range(20)]
    Path("in.jsonl").write_text("\n".join(lines))
    return lambda *arguments, input=None: CliRunner().invoke(app, ["index", *map(str, arguments)], input=input)


@pytest.fixture
def model(tiny_policy: Path) -> list[str]:
    return ["--model", str(tiny_policy), "--max-new-tokens", "8", "--device", "cpu"]


def read(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@contextmanager
def in_the_way(name: str) -> Iterator[None]:
    """A folder where FAISS's file is to be written: a build ends when all its shards are finished."""
    Path(name).mkdir(parents=True)
    yield
    Path(name).rmdir()


def test_from_corpus_to_hits(grace: Callable[..., Result], model: list[str]) -> None:
    estimate = read(grace("build", "in.jsonl", "--out", "ix", *model, "--dry-run", "--json"))
    assert (estimate["documents"], estimate["generations"], estimate["sample"]) == (20, 20, 20)
    assert estimate["seconds"] > 0
    assert not Path("ix").exists()
    built = read(grace("build", "in.jsonl", "--out", "ix", *model, "--json"))
    assert (built["documents"], built["from_cache"], built["generated"]) == (20, 20, 0)  # the sample was all of it
    found = read(grace("search", "ix", "bread", "-k", "3", "--device", "cpu", "--json"))
    assert [hit["id"] for hit in found["hits"]] == GraceIndex.open("ix").search("bread", k=3).ids
    assert found["hits"][0]["rationale"]
    filtered = read(grace("search", "ix", "bread", "--filter", "n=2", "--device", "cpu", "--json"))
    assert {hit["metadata"]["n"] for hit in filtered["hits"]} == {2}
    shown = grace("search", "ix", "bread", "--hybrid", "-k", "2", "--device", "cpu")
    assert "The model wrote:" in shown.stdout
    Path("more.jsonl").write_text('{"id": "x3", "text": "changed", "n": 0}\n{"id": "y", "text": "new", "n": 9}\n')
    clash = grace("add", "more.jsonl", "--out", "ix", "--device", "cpu")
    assert clash.exit_code == 1
    assert "more.jsonl, line 1: the index has another document with the id 'x3'" in clash.stderr
    updated = read(grace("build", "more.jsonl", "--out", "ix", "--update", "--device", "cpu", "--json"))
    assert (updated["documents"], updated["replaced"], updated["added"]) == (21, 1, 2)
    assert grace("delete", "ix", "-", input="x4\nx5\n").stdout == "Deleted 2 documents; 19 are left in ix.\n"
    assert read(grace("verify", "ix", "--json")) == {
        "index": "ix",
        "ok": True,
        "documents": 19,
        "problems": [],
        "notes": [],
    }
    info = read(grace("info", "ix", "--json"))
    assert (info["documents"], info["generation"], info["factory"]) == (19, 3, "Flat")
    assert read(grace("export", "ix", "out", "--json"))["documents"] == 19
    mended = grace("verify", "ix", "--mend", "--factory", "SQ8")
    assert "19 documents read, ok" in mended.stdout
    assert GraceIndex.open("ix").manifest.faiss.factory == "SQ8"


def test_queries_of_a_file_become_a_run(grace: Callable[..., Result], model: list[str]) -> None:
    from ir_datasets.formats import TrecScoredDocs
    from ir_datasets.util import LocalDownload

    read(grace("build", "in.jsonl", "--out", "ix", *model, "--no-rationale", "--json"))
    asked = {"301": "bread yeast", "302": "moon & tide", "303": "--"}
    topics = "".join(f"<top>\n<num> Number: {n}\n<title> {text}\n</top>\n" for n, text in asked.items())
    Path("q.topics.gz").write_bytes(gzip.compress(topics.encode()))
    search = ("search", "ix", "--queries", "q.topics.gz", "-k", "20", "--device", "cpu")
    assert read(grace(*search, "--run", "run.trec", "--tag", "ours", "--json")) == {"run": "run.trec", "lines": 60}
    index = GraceIndex.open("ix")
    by_query: dict[str, dict[str, float]] = {query: {} for query in asked}
    for row in TrecScoredDocs(LocalDownload(Path("run.trec"), mkdir=False)).scoreddocs_iter():
        by_query[row.query_id][row.doc_id] = float(np.float32(row.score))
    for query, text in asked.items():
        found = index.search(text, k=20)
        assert by_query[query] == {hit.id: hit.score for hit in found.hits}, "read back as they were, bit for bit"
    assert Path("run.trec").read_text().splitlines()[0].split()[3::2] == ["1", "ours"]
    assert "exists already" in grace(*search, "--run", "run.trec").stderr
    printed = read(grace(*search, "--json"))["queries"]
    assert [(entry["id"], entry["query"]) for entry in printed] == list(asked.items())
    assert [hit["id"] for hit in printed[0]["hits"]] == index.search("bread yeast", k=20).ids
    Path("q.tsv").write_text("a\tbread\nb\t \n")
    assert "nothing was found for 1 queries" in grace("search", "ix", "--queries", "q.tsv", "--run", "b.trec").stderr
    assert "a  bread" in grace("search", "ix", "--queries", "q.tsv", "-k", "1").stdout


@pytest.mark.parametrize(
    ("content", "arguments", "complaint"),
    [
        ("a\tx\n", ("QUERY", "--queries", "q.tsv"), "Give one of QUERY and --queries FILE."),
        ("a\tx\n", (), "Give one of QUERY and --queries FILE."),
        ("a\tx\n", ("QUERY", "--run", "r"), "--run would do nothing: they go with --queries."),
        ("a\tx\n", ("--queries", "q.tsv", "--tag", "t"), "--tag would do nothing: it goes with --run."),
        ("a\tx\n", ("--queries", "q.tsv", "--run", "r", "--tag", "a b"), "tag='a b': give a name without blanks"),
        ("a\tx\n", ("--queries", "q.tsv", "--run", "r.gz"), "r.gz: runs are written unpacked"),
        ("a\tx\na\ty\n", ("--queries", "q.tsv"), "q.tsv, line 2: the id 'a' was there before."),
        ("a b\tx\n", ("--queries", "q.tsv", "--run", "r"), "The query id 'a b' is empty or holds a blank"),
        ("", ("--queries", "q.tsv"), "q.tsv holds no queries."),
    ],
)
def test_queries_and_runs_that_are_none(
    grace: Callable[..., Result], content: str, arguments: tuple[str, ...], complaint: str
) -> None:
    Path("q.tsv").write_text(content)
    result = grace("search", "ix", *arguments)
    assert result.exit_code == 1
    assert complaint in result.stderr


def test_vectors_that_are_there_already(grace: Callable[..., Result]) -> None:
    documents = make_documents(30)
    vectors = np.stack([document.vector for document in documents])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
    pq.write_table(
        pa.table({"id": [d.id for d in documents], "text": [d.text for d in documents], "v": column}), "in.parquet"
    )
    assert read(grace("build", "in.parquet", "--out", "ix", "--vectors", "v", "--json"))["model"] is None
    np.testing.assert_allclose(stored_rows(Path("ix"))["vector"], unit(vectors), atol=1e-7)
    refused = grace("search", "ix", "a query")
    assert refused.exit_code == 1
    assert "its model is not known" in refused.stderr


def test_vectors_with_the_model_that_made_them(grace: Callable[..., Result], model: list[str]) -> None:
    assert CliRunner().invoke(app, ["embed", "in.jsonl", "v.parquet", *model]).exit_code == 0
    read(grace("build", "v.parquet", "--out", "given", "--vectors", "vector", *model, "--json"))
    read(grace("build", "in.jsonl", "--out", "made", *model, "--json"))
    one = read(grace("search", "given", "glass", "--device", "cpu", "--json"))["hits"]
    other = read(grace("search", "made", "glass", "--device", "cpu", "--json"))["hits"]
    assert [hit["id"] for hit in one] == [hit["id"] for hit in other]
    other_model = [*model[:3], "4", *model[4:]]
    wrong = grace("build", "v.parquet", "--out", "wrong", "--vectors", "vector", *other_model)
    assert wrong.exit_code == 1
    assert "max_new_tokens: 4 here, 8 there" in wrong.stderr


def test_bad_rows(grace: Callable[..., Result], model: list[str]) -> None:
    with open("in.jsonl", "a") as stream:
        stream.write('\n{"id": "bad"}\n')
    stopped = grace("build", "in.jsonl", "--out", "ix", *model)
    assert stopped.exit_code == 1
    assert "in.jsonl, line 21: no 'text' among its columns" in stopped.stderr
    built = grace("build", "in.jsonl", "--out", "ix", *model, "--skip-bad", "--json")
    assert read(built)["skipped"] == 1
    assert "Warning: skipped in.jsonl, line 21" in built.stderr
    Path("bad.jsonl").write_text('{"id": 1}\n')
    nothing = grace("build", "bad.jsonl", "--out", "none", *model, "--skip-bad")
    assert "All 1 rows of the input are bad" in nothing.stderr
    Path("empty.jsonl").write_text("")
    assert "holds no documents" in grace("build", "empty.jsonl", "--out", "none", *model).stderr


def test_standard_input(grace: Callable[..., Result], model: list[str]) -> None:
    lines = Path("in.jsonl").read_bytes()
    assert read(grace("build", "-", "--format", "jsonl", "--out", "ix", *model, "--json", input=lines))["added"] == 20
    again = read(grace("build", "-", "--format", "jsonl", "--out", "ix", *model, "--json", input=lines))
    assert (again["resumed"], again["generated"]) == (20, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "in.jsonl", "--out", "ix", "--add", "--overwrite"], "cannot go together"),
        (
            ["build", "in.jsonl", "--out", "ix", "--workers", "2", "--gpus", "0"],
            "--workers and --gpus would do nothing",
        ),
        (["build", "in.jsonl", "--out", "ix", "--memory", "much"], "give something like 8GB"),
        (["build", "in.jsonl", "--out", "ix", "--add"], "has no index"),
        (["build", "missing.jsonl", "--out", "ix"], "missing.jsonl does not exist"),
        (["search", "ix", "query"], "has no index"),
        (["verify", "ix", "--factory", "Flat"], "--factory goes with --mend"),
        (["delete", "ix", "a"], "has no index"),
    ],
)
def test_what_cannot_be_done(arguments: list[str], message: str, grace: Callable[..., Result]) -> None:
    result = grace(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("ix").exists()


def test_k_out_of_range(grace: Callable[..., Result], model: list[str]) -> None:
    read(grace("build", "in.jsonl", "--out", "ix", *model, "--no-rationale", "--json"))
    assert "k=0: give a positive whole number" in grace("search", "ix", "a", "-k", "0", "--device", "cpu").stderr
    assert len(read(grace("search", "ix", "a", "-k", "99", "--device", "cpu", "--json"))["hits"]) == 20


def test_a_factory_that_faiss_does_not_know(grace: Callable[..., Result], model: list[str]) -> None:
    for option in ((), ("--dry-run",)):
        result = grace("build", "in.jsonl", "--out", "ix", "--model", "nowhere", "--factory", "Nonsense9", *option)
        assert result.exit_code == 1
        assert "FAISS cannot make an index 'Nonsense9'" in result.stderr
    for factory, message in (("PQ7", "of 32 dimensions"), ("IVF64,Flat", "has 64 lists for 20 vectors")):
        result = grace("build", "in.jsonl", "--out", "ix", *model, "--factory", factory)
        assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
        assert not Path("ix").exists()
    result = grace("build", "in.jsonl", "--out", "ix", *model, "--memory", "99B")
    assert "fits into" in result.stderr


def test_another_build_on_unfinished_work_is_refused(grace: Callable[..., Result], model: list[str]) -> None:
    lines = Path("in.jsonl").read_text().splitlines()
    line = ["build", "in.jsonl", "--out", "ix", *model, "--shard-rows", "5"]
    with in_the_way("ix/index.faiss.tmp"):
        assert "Finished shards are kept in ix/build" in grace(*line, "--cache", "none").stderr
    kept = sorted(Path("ix/build").glob("*.parquet"))
    assert "is not finished (no manifest.json): repeat the command" in grace("search", "ix", "a").stderr
    assert len(kept) == 4
    for options, difference in (
        (["--shard-rows", "4"], "shard-rows: 4 here, 5 there"),
        (["--max-new-tokens", "7"], "generation.max_new_tokens: 7 here, 8 there"),
        (["--on-duplicate-text", "skip"], "on-duplicate-text: 'skip' here, 'keep' there"),
    ):
        result = grace(*line, *options)
        assert (result.exit_code, difference in result.stderr) == (1, True), result.stderr
    Path("in.jsonl").write_text("\n".join([*lines[:12], lines[12].replace("number", "NUMBER"), *lines[13:]]))
    refused = grace(*line)
    assert refused.exit_code == 1
    assert (
        "the input differs from it behind text 10. Give that input again, or discard what differs (--overwrite)."
        in refused.stderr
    )
    assert sorted(Path("ix/build").glob("*.parquet")) == kept
    assert read(grace(*line, "--overwrite", "--json"))["resumed"] == 15
    # A change of an index that is there: no other change discards what an interrupted one has finished.
    Path("more.jsonl").write_text("\n".join(json.dumps({"id": f"y{n}", "text": f"more {n}"}) for n in range(20)))
    add = ["add", "more.jsonl", "--out", "ix", "--device", "cpu", "--json"]
    with in_the_way("ix/index-2.faiss.tmp"):
        assert "Finished shards are kept in ix/build" in grace(*add, "--cache", "none").stderr
    assert "the finished shards of a build that was stopped" in grace("delete", "ix", "x3").stderr
    assert "the finished shards of a build that was stopped" in grace("verify", "ix", "--mend").stderr
    Path("other.jsonl").write_text('{"id": "z", "text": "another"}')
    assert "or remove ix/build" in grace("add", "other.jsonl", "--out", "ix", "--device", "cpu").stderr
    assert read(grace(*add))["resumed"] == 20


def test_what_is_known_at_once_is_said_before_a_model_is_loaded(grace: Callable[..., Result]) -> None:
    for options, message in (
        (["--text-column", "body"], "in.jsonl, line 1: no 'body' among its columns"),
        (["--workers", "3"], "--workers would do nothing"),
        (["--out", "/proc/index"], "Cannot write the index /proc/index"),
    ):
        result = grace("build", "in.jsonl", "--out", "ix", "--model", "nowhere", *options)
        assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
        assert not Path("ix").exists()


@pytest.mark.parametrize(("text", "size"), [("8GB", 8_000_000_000), ("1.5 MiB", 1_572_864), ("100", 100), (None, None)])
def test_sizes(text: str | None, size: int | None) -> None:
    assert parse_bytes(text) == size
    for wrong in ("", "GB", "8XB", "-1GB", "0"):
        with pytest.raises(InputError):
            parse_bytes(wrong)


def test_help_loads_neither_torch_nor_faiss() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom grace_retrieval.cli import app\n"
        "assert CliRunner().invoke(app, ['index', 'build', '--help']).exit_code == 0\n"
        "import grace_retrieval.indexing.manifest\n"
        "print(sorted({'torch', 'faiss', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_centring_is_fitted_on_the_corpus_and_kept(
    grace: Callable[..., Result], model: list[str], tmp_path: Path
) -> None:
    words = ("bread", "dough", "yeast", "tide", "moon", "sea", "mine", "pump", "steam", "road")
    rows = [{"id": word, "text": f"About {word} and what it does."} for word in words]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    built = grace("build", tmp_path / "c.jsonl", "--out", tmp_path / "ix", "--centre", *model)
    assert built.exit_code == 0, built.stderr
    index = GraceIndex.open(tmp_path / "ix")
    assert index.embedder.centring is not None
    raw = np.stack([index.embedder.encode_document([row["text"]])[0] for row in rows])
    assert np.abs(raw.mean(axis=0)).max() < 0.2, "nothing is common to all of them any more"
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "z", "text": "About rain."}))
    assert grace("add", tmp_path / "more.jsonl", "--out", tmp_path / "ix").exit_code == 0
    assert GraceIndex.open(tmp_path / "ix").embedder.centring.digest() == index.embedder.centring.digest()
    (tmp_path / "q.txt").write_text("".join(f"What does {word} do, and to whom, and why?\n" for word in words))
    asked = grace(
        "build", tmp_path / "c.jsonl", "--out", tmp_path / "ix3", "--centre-queries", tmp_path / "q.txt", *model
    )
    assert asked.exit_code == 0, asked.stderr
    centring, other = (GraceIndex.open(tmp_path / name).embedder.centring for name in ("ix3", "ix"))
    assert centring is not None and np.array_equal(centring.document, other.document)
    queries = (tmp_path / "q.txt").read_text().splitlines()
    plain = GraceEmbedder(model[1], cache=None, device="cpu", max_new_tokens=8)
    np.testing.assert_allclose(centring.query, plain.encode_query(queries).mean(axis=0), atol=1e-4)
    missing = grace("build", tmp_path / "c.jsonl", "--out", tmp_path / "ix4", "--centre-queries", "none.txt", *model)
    assert missing.exit_code == 1 and "none.txt" in missing.stderr
    refused = grace("build", "-", "--format", "jsonl", "--out", tmp_path / "ix2", "--centre", input="{}")
    assert refused.exit_code == 1
    assert "it needs texts that can be read twice" in refused.stderr


def test_add_remembers_the_columns_and_warns_of_ids_from_elsewhere(tmp_path: Path) -> None:
    def corpus(name: str, *rows: dict[str, object]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    row = {"key": "a", "body": "Tides follow the moon.", "head": "Tides", "lang": "en", "internal": 1, "v": [1.0, 0.0]}
    out = str(tmp_path / "index")
    build = [
        "index",
        "build",
        corpus("first.jsonl", row),
        "--out",
        out,
        "--vectors",
        "v",
        "-q",
        "--text-column",
        "body",
    ]
    build += ["--id-column", "key", "--title-column", "head", "--metadata", "lang"]
    assert CliRunner().invoke(app, build).exit_code == 0
    second = corpus("second.jsonl", {**row, "key": "b", "body": "Bread rises.", "v": [0.0, 1.0]}, row)
    added = CliRunner().invoke(app, ["index", "add", second, "--out", out, "--vectors", "v", "-q"])
    assert added.exit_code == 0 and not added.stderr, added.output
    with GraceIndex.open(out) as index:
        (hit,) = index.search_vectors([0.0, 1.0], k=1)[0].hits
        assert len(index) == 2
        assert (hit.id, hit.title, hit.text, hit.metadata) == ("b", "Tides", "Bread rises.", {"lang": "en"})
        assert index.manifest.columns == {
            "text": "body", "id": "key", "title": "head", "metadata": ["lang"], "ids": ["column key"],
        }  # fmt: skip
    # What is deleted changes nothing of what is remembered.
    assert CliRunner().invoke(app, ["index", "delete", out, "b"]).exit_code == 0
    third = corpus("third.jsonl", {"id": "c", "body": "Glass is sand.", "v": [0.6, 0.8]})
    other = ["index", "add", third, "--out", out, "--vectors", "v", "-q", "--id-column", "id", "--title-column", ""]
    added = CliRunner().invoke(app, other)
    assert added.exit_code == 0, added.output
    assert "the ids of" in added.stderr and "came from column key" in added.stderr and "column id" in added.stderr


def test_what_can_be_known_in_a_second_comes_before_the_model(
    grace: Callable[..., Result], model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(grace("build", "in.jsonl", "--out", "ix", *model, "--json"))
    gone = ("--model", "./nowhere", "--device", "cpu")
    assert "k=0: give a positive whole number" in grace("search", "ix", "a", "-k", "0", *gone).stderr
    assert "FAISS cannot make an index 'Broken'" in grace("verify", "ix", "--mend", "--factory", "Broken").stderr
    assert "no document has metadata 'm'" in grace("search", "ix", "a", "--filter", "m=1", *gone).stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    ray = grace("build", "in.jsonl", "--out", "other", "--runner", "ray", "--model", "./nowhere")
    assert "pip install 'grace-retrieval[ray]'" in ray.stderr
    monkeypatch.setitem(sys.modules, "bm25s", None)
    assert "pip install 'grace-retrieval[hybrid]'" in grace("search", "ix", "a", "--hybrid", *gone).stderr
