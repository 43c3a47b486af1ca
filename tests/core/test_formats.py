"""Formats of the field: each is read as the tools read it that write it."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard

from grace_retrieval.corpus.beir import beir_judgements, open_texts
from grace_retrieval.corpus.corpus import Columns, Corpus
from grace_retrieval.corpus.files import TextSource
from grace_retrieval.corpus.formats import FORMATS, RowFile
from grace_retrieval.corpus.judgements import read_judgements
from grace_retrieval.errors import InputError

PASSAGES = [
    ("0", "The presence of communication amid scientific minds."),
    ("1", 'a "quoted" word, a lone " and a comma'),
    ("7130104", "Zürich 日本語 \u2028 and a next line \x85"),
]
TOPICS = """<top>

<num> Number: 301
<title> International Organized Crime

<desc> Description:
Identify organizations that participate in international criminal
activity.

<narr> Narrative:
A relevant document must as a minimum identify
the organization.

</top>

<top>
<num> Number: 302
<title> Poliomyelitis & Post-Polio
<desc> Description:
Is the disease of Poliomyelitis (polio) under control in the world?
<narr> Narrative:
All relevant.
</top>
"""
XML_TOPICS = """<topics task="COVIDSearch Round 5">
 <topic number="1">
    <query>coronavirus origin &amp; spread</query>
    <question>what is the origin of COVID-19</question>
    <narrative>seeking a range of information</narrative>
  </topic>
  <topic number="2"><query>weather</query><question>how does it respond?</question><narrative>-</narrative></topic>
</topics>
"""


def read(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(row.id, row.text) for row in TextSource(path=str(path), **options).documents()]


def of_ir_datasets(path: Path) -> Any:
    """A file as ir_datasets takes it."""
    from ir_datasets.util import LocalDownload

    return LocalDownload(path, mkdir=False)


def test_ms_marco_collections_and_queries_are_read_as_ir_datasets_reads_them(tmp_path: Path) -> None:
    from ir_datasets.formats import TsvDocs, TsvQueries

    path = tmp_path / "collection.tsv"
    path.write_text("".join(f"{name}\t{text}\n" for name, text in PASSAGES[:2]), encoding="utf-8")
    theirs = [(row.doc_id, row.text) for row in TsvDocs(of_ir_datasets(path)).docs_iter()]
    assert read(path) == theirs == PASSAGES[:2]
    assert [(row.query_id, row.text) for row in TsvQueries(of_ir_datasets(path)).queries_iter()] == read(path)
    path.write_text("".join(f"{name}\t{text}\r\n" for name, text in PASSAGES), encoding="utf-8")
    assert read(path) == PASSAGES, "only a line feed, or with a carriage return, ends a line"


def test_columns_of_tables_with_tabs(tmp_path: Path) -> None:
    docs = tmp_path / "msmarco-docs.tsv"
    docs.write_text("D1\thttps://example.org\tA title\tIts body\n")
    (found,) = Corpus([str(docs)], columns=Columns(title="title")).documents()
    assert (found.id, found.title, found.text, found.metadata) == (
        "D1",
        "A title",
        "Its body",
        {"url": "https://example.org"},
    )
    named = tmp_path / "psgs_w100.tsv"  # as DPR has it
    named.write_text('id\ttext\ttitle\n1\t"Aaron"\tAaron\n')
    assert read(named, title_column="title") == [("1", '"Aaron"')]
    named.write_text("pid\tbody\n4\tx\n")
    assert read(named, text_column="body", id_column="pid") == [("4", "x")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1\ta\tb\n", r"line 1: 3 fields, none of which is 'text': '1', 'a', 'b'.*2 fields \(id, text\)"),
        ("1\ta\n2\n", r"line 2: 1 fields where the table has 2"),
        ("1\t\n", r"line 1: the text is blank"),
    ],
)
def test_tables_with_tabs_that_are_none(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "collection.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        read(path)


def test_topics_are_read_as_ir_datasets_reads_them(tmp_path: Path) -> None:
    from ir_datasets.formats import TrecQueries, TrecXmlQueries

    path = tmp_path / "robust04.topics"
    path.write_text(TOPICS)
    read_by_them = TrecQueries(of_ir_datasets(path)).queries_iter()
    for row, (_, ours) in zip(read_by_them, RowFile(path=str(path)).read(), strict=True):
        assert isinstance(ours, dict)
        theirs = {name: " ".join(getattr(row, name).split()) for name in ("title", "description", "narrative")}
        assert {"id": row.query_id, "text": theirs["title"], **theirs} == ours
    assert [name for name, _ in read(path)] == ["301", "302"]
    assert read(path, text_column="description")[1][1].startswith("Is the disease of Poliomyelitis (polio) under")
    (tmp_path / "covid.xml").write_text(XML_TOPICS)
    names = {"number": "query_id", "query": "title", "question": "description", "narrative": "narrative"}
    theirs = TrecXmlQueries(of_ir_datasets(tmp_path / "covid.xml"), qtype_map=names).queries_iter()
    expected = [(row.query_id, row.title) for row in theirs]
    assert read(tmp_path / "covid.xml", format="trec-topics") == expected
    assert expected[0] == ("1", "coronavirus origin & spread")


def test_topics_that_are_none_or_not_named_so(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text(TOPICS)
    with pytest.raises(InputError, match=r"line 1: these are TREC topics.*trec-topics"):
        read(path)
    cut = tmp_path / "cut.topics"
    cut.write_text("<top>\n<title> a\n</top>\n<top>\n<num> 2\n<top>\n<num> 3\n<title> b\n</top>\n<top>\n")
    found: list[InputError] = []
    assert [row.id for row in TextSource(path=str(cut)).documents(found.append)] == ["3"]
    problems = [str(problem).removeprefix(f"{cut}, ") for problem in found]
    assert problems[0] == "line 1: a topic without a number (<num>)."
    assert problems[1:] == [f"line {line}: a topic without an end (</top>)." for line in (4, 10)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_collections_of_anserini(tmp_path: Path, newline: str) -> None:
    """JsonCollection: files of one object, of a list, or of an object a line, with id and contents."""
    rows = [{"id": f"doc{number}", "contents": f"contents\n{number} é"} for number in range(3)]
    (tmp_path / "a.jsonl").write_text(newline.join(map(json.dumps, rows)), newline="")
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2).replace("\n", newline), newline="")
    (tmp_path / "one.json").write_text(json.dumps(rows[0]))
    (tmp_path / "lines.json").write_text(newline.join(map(json.dumps, rows)), newline="")
    wanted = [(row["id"], row["contents"]) for row in rows]
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.json") == read(tmp_path / "lines.json") == wanted
    assert read(tmp_path / "one.json") == wanted[:1]
    (found,) = Corpus([str(tmp_path / "one.json")]).documents()
    assert found.metadata == {}, "the text is no metadata"
    both = tmp_path / "both.jsonl"
    both.write_text('{"id": 1, "text": "t", "contents": "c"}')
    assert read(both) == [("1", "t")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('[{"text": "a"}, {"text" "b"}]', "line 1, column 25: not JSON (Expecting ':' delimiter)"),
        ('[\n{"text": "a"}\n{"text": "b"}]', "line 3, column 1: not JSON (no comma or end of the list)"),
        ('[{"text": "a"}', "not JSON (no comma or end of the list)"),
        ('[{"text": "a"},', "not JSON (the list has no end)"),
        ('[{"text": "a"}] x', "not JSON (text behind the end of the list)"),
        ('{"text": "a', "line 1, column 10: not JSON (Unterminated string"),
        ("[1]", "row 1: a JSON int, not a JSON object."),
        ("[" * 100_000, "not JSON"),
        (b'[{"text": "\xff"}]', "not UTF-8 (byte 0xff)"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as raised:
        read(path)
    assert complaint in str(raised.value)


def test_long_json_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [
        {"id": number, "text": '\u00e9\U0001f98a\\"' * random.Random(number).randrange(9000)} for number in range(99)
    ]
    path = tmp_path / "in.json"
    path.write_text(json.dumps([*rows, *rows[:1] * 500], ensure_ascii=False, indent=1), encoding="utf-8")
    tracemalloc.start()
    try:
        found = [(row.id, len(row.text)) for row in TextSource(path=str(path), allow_empty=True).documents()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[:99] == [(str(row["id"]), len(str(row["text"]))) for row in rows]
    assert path.stat().st_size > 3_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".topics"])
def test_packed_files(tmp_path: Path, suffix: str, packed: str) -> None:
    contents = {
        ".jsonl": '{"id": "1", "text": "one"}\n{"id": "2", "text": "two"}\n',
        ".json": '[{"id": "1", "text": "one"}, {"id": "2", "text": "two"}]',
        ".csv": "id,text\n1,one\n2,two\n",
        ".tsv": "1\tone\n2\ttwo\n",
        ".txt": "one\ntwo\n",
        ".topics": "<top><num>1<title>one</top>\n<top><num>2<title>two</top>\n",
    }
    content = contents[suffix].encode()
    pack = gzip.compress if packed == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"in{suffix}{packed}"
    path.write_bytes(pack(content[:9]) + pack(content[9:]))  # several behind each other are one file to gzip and zstd
    assert [text for _, text in read(path)] == ["one", "two"]
    path.write_bytes(pack(random.Random(0).randbytes(2000).hex().encode() + content)[:-30])
    with pytest.raises(InputError, match="Cannot read"):
        read(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="Cannot read"):
        read(path)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(InputError, match="Parquet is packed in itself"):
        TextSource(path=str(path))


def test_packed_beir_folders_and_their_splits(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": 1, "text": "a", "metadata": {"url": "u"}}\n'))
    (tmp_path / "queries.jsonl.zst").write_bytes(zstandard.compress(b'{"_id": "q", "text": "b"}\n'))
    (tmp_path / "qrels" / "dev.tsv.gz").write_bytes(gzip.compress(b"query-id\tcorpus-id\tscore\nq\t1\t2\n"))
    assert [(d.id, d.metadata) for d in Corpus([str(tmp_path)]).documents()] == [("1", {"url": "u"})]
    assert [d.id for d in open_texts(str(tmp_path), "queries").documents()] == ["q"]
    assert beir_judgements(tmp_path, "dev") == {"q": {"1": 2}}
    with pytest.raises(InputError, match=r"test.tsv: there is no such file. Its splits are dev\."):
        beir_judgements(tmp_path)


def test_the_file_of_a_beir_folder_has_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n')
    assert [d.id for d in Corpus([str(path)]).documents()] == ["a", "b"]
    path.write_text('{"_id": {"$oid": "6"}, "text": "x"}\n')  # MongoDB's
    (found,) = Corpus([str(path)]).documents()
    assert found.metadata == {"_id": {"$oid": "6"}}


def test_judgements_are_read_as_ir_datasets_reads_them(tmp_path: Path) -> None:
    from ir_datasets.formats import TrecQrels

    path = tmp_path / "qrels.txt"
    path.write_text("301 0 FBIS3-10082 1\n301 0 FBIS3-10169 0\n302\t0\tLA-1\t-2\n\n302 Q0  LA-2   2\n")
    theirs: dict[str, dict[str, int]] = {}
    lines = path.read_text().replace("\n\n", "\n")
    (tmp_path / "without-blank-lines.txt").write_text(lines)
    for row in TrecQrels(of_ir_datasets(tmp_path / "without-blank-lines.txt"), {}).qrels_iter():
        theirs.setdefault(row.query_id, {})[row.doc_id] = row.relevance
    assert read_judgements(path) == theirs
    (tmp_path / "qrels.dev.tsv.gz").write_bytes(gzip.compress(b"1102432\t0\t2026790\t1\n"))  # as MS MARCO has it
    assert read_judgements(tmp_path / "qrels.dev.tsv.gz") == {"1102432": {"2026790": 1}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1 0 a 1\n1 0 a 0\n", "line 2: query '1' and document 'a' have the scores 1 and 0"),
        ("1 0 a 1\n1 0 b\n", "line 2: 3 fields. Give query, iteration, document and relevance."),
        ("1 0 a 0.5\n", "line 1: score '0.5'"),
        ("1 a 1\n", "line 1: give a table with the columns query-id"),
    ],
)
def test_judgements_that_are_none(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(content)
    with pytest.raises(InputError) as raised:
        read_judgements(path)
    assert complaint in str(raised.value)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """A folder that `datasets` saved: two splits, one of them in several files."""
    from datasets import Dataset, DatasetDict

    train = Dataset.from_dict({"id": [f"{n}" for n in range(2500)], "text": [f"text {n}" for n in range(2500)]})
    test = Dataset.from_dict({"_id": [7, 8], "text": ["a", "b"], "year": [1999, None]}).select([1, 0])
    folder = tmp_path / "saved"
    DatasetDict({"train": train, "test": test}).save_to_disk(folder, num_shards={"train": 3, "test": 1})
    yield folder


def test_folders_of_datasets(saved: Path) -> None:
    assert read(saved / "train") == [(f"{n}", f"text {n}") for n in range(2500)]
    found = list(Corpus([str(saved / "test")]).documents())
    assert [(d.id, d.text, d.metadata) for d in found] == [("8", "b", {"year": None}), ("7", "a", {"year": 1999})]
    assert found[0].source == f"{saved / 'test'}, row 1"
    with pytest.raises(InputError, match=r"the splits train, test of a data set: give one of .*saved/train"):
        list(Corpus([str(saved)]).documents())
    (saved / "train" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(InputError, match=r"has no file data-00001-of-00003\.arrow"):
        read(saved / "train")
    with pytest.raises(InputError, match="is none"):
        TextSource(path=str(saved / "test" / "state.json"), format="datasets")


def test_files_of_arrow(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "text": pa.array(["x", "y"], pa.large_string())})
    feather.write_feather(table, tmp_path / "in.feather")
    with pa.ipc.new_stream(str(tmp_path / "in.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "in.feather") == read(tmp_path / "in.arrow") == [("a", "x"), ("b", "y")]
    (tmp_path / "in.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(InputError, match="as Arrow"):
        read(tmp_path / "in.arrow")


def test_parquet_as_pandas_writes_it(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": [12, 13],
            "text": pd.Categorical(["x", "y"]),
            "n": pd.array([1, None], dtype="Int64"),
            "f": [1.5, float("nan")],
            "day": pd.to_datetime(["2020-01-01", "2021-01-01"]),
            "code": ["0012", "NA"],
        },
        index=[5, 6],
    )
    frame.to_parquet(tmp_path / "in.parquet")
    first, second = Corpus([str(tmp_path / "in.parquet")]).documents()
    assert first.id == "12"
    assert first.metadata == {"n": 1, "f": 1.5, "day": "2020-01-01T00:00:00", "code": "0012"}, "no numbers of rows"
    assert second.metadata == {"n": None, "f": None, "day": "2021-01-01T00:00:00", "code": "NA"}
    frame.set_index("code").to_parquet(tmp_path / "in.parquet")
    assert next(Corpus([str(tmp_path / "in.parquet")]).documents()).metadata["code"] == "0012", "an index with a name"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"id": [1.0]}, r"column 'id' is of type double. Give strings or whole numbers, or name another id column"),
        ({"text": [1]}, r"column 'text' is of type integer. Give strings, or name another text column"),
        ({"raw": [b"x"]}, r"column 'raw' is of type binary"),
        ({"raw": [[{"a": b"x"}]]}, r"column 'raw' is of type list.*binary"),
    ],
)
def test_a_column_of_a_wrong_type_is_named_at_once(tmp_path: Path, columns: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["x"], **columns}), path)
    skipped: list[InputError] = []
    with pytest.raises(InputError, match=complaint):
        list(Corpus([str(path)]).documents(skipped.append))
    assert not skipped


def test_folders_say_what_they_leave_out(tmp_path: Path) -> None:
    for name in ("corpus.tsv", "about.json", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"text": "a"}') if name.endswith("gz") else b"1\tx")
    with pytest.warns(UserWarning, match=r"read 1 files, and left out 2 \(about.json, corpus.tsv\)"):
        assert [d.text for d in Corpus([str(tmp_path)]).documents()] == ["a"]
    with pytest.warns(UserWarning, match=r"left out 2 \(a.jsonl.gz, about.json\)"):
        assert [d.text for d in Corpus([str(tmp_path)], format="tsv").documents()] == ["x"]
    (tmp_path / "anserini").mkdir()
    (tmp_path / "anserini" / "1.json").write_text('[{"id": "a", "contents": "x"}]')
    assert [d.id for d in Corpus([str(tmp_path / "anserini")]).documents()] == ["a"]


def test_every_format_can_be_named_on_the_command_line() -> None:
    from grace_retrieval.cli.options import Format

    assert {member.value for member in Format} == set(FORMATS)
