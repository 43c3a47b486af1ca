"""Training data: formats, names of columns, and complaints that name file, row and column."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from grace_retrieval import InputError
from grace_retrieval.indexing import Corpus
from grace_training.data import load_examples

ROWS = [{"query": "what of tides", "positive": "on tides"}, {"query": "what of bread", "positive": "on bread"}]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert load_examples(write(tmp_path, name, ROWS)).to_list() == ROWS


def test_other_names_of_columns_and_an_instruction(tmp_path: Path) -> None:
    path = write(tmp_path, "qa.jsonl", [{"question": "why", "answer": "so", "id": 1}])
    assert load_examples(path, instruction="Find the answer:").to_list() == [
        {"query": "Find the answer: why", "positive": "so"}
    ]
    path = write(tmp_path, "papers.jsonl", [{"title": "t", "abstract": "a", "text": "left out"}])
    assert load_examples(path, columns={"query": "title", "positive": "abstract"}).to_list() == [
        {"query": "t", "positive": "a"}
    ]
    assert load_examples(write(tmp_path, "texts.csv", [{"sentence": "one"}])).to_list() == [{"text": "one"}]


def test_a_file_is_read_as_an_index_reads_it(tmp_path: Path) -> None:
    """Byte order marks and blank lines are read; what is wrong is said with the words of the corpus reader."""
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert list(load_examples(tmp_path / "texts.txt")["text"]) == ["one", "two"]
    for name, content, message in (
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two"}', None),
        ("b.jsonl", b'{"text": "one"}\n[1]', "b.jsonl, line 2: a JSON list, where each line must be a JSON object"),
        ("c.csv", b"text\none\nt\xf6o\n", "c.csv, line 3: not UTF-8"),
        ("d.csv", b"text,n\none,1\ntwo\n", "d.csv, line 3: 1 fields where the header has 2"),
        ("e.csv", b"text,text\none,two\n", "e.csv has 2 (columns )?'text'"),
    ):
        (tmp_path / name).write_bytes(content)
        if message is None:
            assert list(load_examples(tmp_path / name)["text"]) == ["one", "two"]
            continue
        with pytest.raises(InputError, match=message):
            load_examples(tmp_path / name)
        # The same file, read for an index, is refused with the same words.
        with pytest.raises(InputError, match=message):
            list(Corpus([str(tmp_path / name)]).documents())


def test_a_limit_draws_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.jsonl", [{"text": f"text {i}"} for i in range(50)])
    first, again, other = (load_examples(path, limit=5, seed=seed)["text"][:] for seed in (1, 1, 2))
    assert first == again != other and len(first) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"query": "q", "positive": "p"}, {"query": "q", "positive": " "}],
            r"pairs.jsonl, line 2: 'positive' is blank",
        ),
        ([{"query": "q", "positive": None}], r"line 1: 'positive' is null, not a string"),
        ([{"query": 5, "positive": "p"}], r"line 1: 'query' is int, not a string"),
        ([{"title": "t", "body": "b"}], r"has columns title, body: there must be query and positive, or text"),
        ([{"query": "q", "question": "q", "positive": "p"}], "several of query, question, positive mean the same"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_examples(write(tmp_path, "pairs.jsonl", rows))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_a_row_may_lack_its_rationale(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "tides", "positive": "The moon.", "query_rationale": None, "positive_rationale": "On tides."},
        {"query": "bread", "positive": "Yeast.", "query_rationale": "Of bread.", "positive_rationale": None},
    ]
    found = load_examples(write(tmp_path, name, rows))
    assert [{key: row[key] for key in rows[0]} for row in found] == rows
    rows[0]["positive"] = None
    with pytest.raises(InputError, match="'positive' is null"):
        load_examples(write(tmp_path, f"bad-{name}", rows))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.jsonl does not exist"):
        load_examples(tmp_path / "missing.jsonl")
    (tmp_path / "pairs.xml").write_text("<a/>", encoding="utf-8")
    with pytest.raises(InputError, match="Unknown input format"):
        load_examples(tmp_path / "pairs.xml")
    (tmp_path / "broken.jsonl").write_text('{"query": "q"\n{"query"', encoding="utf-8")
    with pytest.raises(InputError, match=r"broken.jsonl, line 1: not JSON"):
        load_examples(tmp_path / "broken.jsonl")
    (tmp_path / "empty.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"empty.parquet"):
        load_examples(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="has no column 'title'"):
        load_examples(write(tmp_path, "pairs.jsonl", ROWS), columns={"query": "title", "positive": "positive"})
    with pytest.raises(InputError, match="unknown anchor"):
        load_examples(write(tmp_path, "pairs.jsonl", ROWS), columns={"anchor": "query"})


class TestTrainingRows:
    @pytest.fixture(autouse=True)
    def _needs_trl(self) -> None:
        pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

    def config(self, tmp_path: Path, **options: Any) -> Any:
        from grace_training.config import GraceConfig

        return GraceConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **options)

    def test_roles_and_negatives(self, pairs: Any, tmp_path: Path) -> None:
        from grace_training.data import training_rows

        rows = training_rows(pairs, self.config(tmp_path, rollout_roles=["document", "query"]))
        assert rows[0] == {
            "prompt": "a text on tides, number 0",
            "role": "document",
            "rationale": None,
            "other": "what of tides",
            "other_role": "query",
            "other_rationale": None,
            "negative": "other tides",
            "source": 0,
        }
        assert rows[1]["prompt"] == "what of tides" and rows[1]["other_role"] == "document" and len(rows) == 16

    def test_a_text_is_its_own_query(self, pairs: Any, tmp_path: Path) -> None:
        from grace_training.data import training_rows

        rows = training_rows(pairs, self.config(tmp_path, mode="unsupervised"))
        assert len(rows) == 8 and rows[0]["prompt"] == rows[0]["other"] and rows[0]["negative"] is None

    def test_what_does_not_go_together(self, pairs: Any, tmp_path: Path) -> None:
        from grace_training.data import training_rows

        texts = load_examples(write(tmp_path, "texts.jsonl", [{"text": "one"}]))
        with pytest.raises(InputError, match="these rows have text alone"):
            training_rows(texts, self.config(tmp_path))
        with pytest.raises(InputError, match="different columns"):
            training_rows([pairs, texts], self.config(tmp_path))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"preset": "ours"}, "preset='ours'"),
            ({"rollout_roles": ["passage"]}, "rollout_roles"),
            ({"rollout_roles": []}, "rollout_roles"),
            ({"mode": "unsupervised", "rollout_roles": ["query"]}, "one role only"),
            ({"reward_temperature": 0.0}, "reward_temperature=0.0"),
            ({"pathwise_weight": -1.0}, r"pathwise_weight=-1.0"),
        ],
    )
    def test_options_out_of_range(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.config(tmp_path, **options)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.json"])
def test_texts_are_texts_whatever_they_look_like(tmp_path: Path, name: str) -> None:
    queries = ["NA", "null", "1969", "0012", "1969-07-20", "1e5", "true"]
    rows = [{"query": query, "positive": "what it is"} for query in queries]
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("query,positive\n" + "".join(f"{query},what it is\n" for query in queries))
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        path.write_text(json.dumps(rows))
    assert list(load_examples(path)["query"]) == queries


def test_columns_that_begin_later_and_long_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [ROWS[0], {**ROWS[1], "negative": "on moons"}]))
    with pytest.raises(InputError, match="line 1: 'negative' is null"):
        load_examples(path)
    long = tmp_path / "long.csv"
    long.write_text(f"query,positive\nof what,{'tides ' * 40_000}\n")
    assert len(load_examples(long)["positive"][0]) == 240_000
