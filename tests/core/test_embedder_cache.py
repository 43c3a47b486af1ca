"""Rationales are written once: what finds a cached row again, and what never may."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import (
    EngineError,
    GraceEmbedder,
    InputError,
    MemoryCache,
    RationaleOutput,
    RationaleRequest,
    SamplingOptions,
    SQLiteCache,
)
from grace_retrieval.cache import row_key
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.pipeline import STORE_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MakeEmbedder = Callable[..., "GraceEmbedder"]

TEXTS = ["What causes ocean tides?", "The moon pulls.", "Bread rises."]


@contextmanager
def forbidden_model(embedder: GraceEmbedder) -> Iterator[None]:
    """Every forward pass of the policy fails the test, also where errors are caught."""

    def refuse(*_: Any) -> None:
        pytest.fail("the policy was run")

    hook = embedder.writer.model.base_model.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def written(embedder: GraceEmbedder) -> int:
    """Texts the engine has worked on."""
    return embedder.writer.engine.statistics()["texts"]


class TestWhere:
    @pytest.mark.parametrize("kind", ["memory", "folder", "file", "object", "default"])
    def test_the_second_time_no_model_is_run(
        self, make_embedder: MakeEmbedder, tmp_path: Path, grace_cache_dir: Path, kind: str
    ) -> None:
        spec: Any = {"folder": tmp_path / "c", "file": tmp_path / "c.sqlite", "object": MemoryCache()}.get(kind, kind)
        embedder = make_embedder(cache=spec)
        first = embedder.encode(TEXTS)
        queries = embedder.encode_query(TEXTS)
        rationales = embedder.rationales(TEXTS)
        with forbidden_model(embedder):
            np.testing.assert_array_equal(embedder.encode(TEXTS[::-1])[::-1], first)
            np.testing.assert_array_equal(embedder.encode_query(TEXTS), queries)
            np.testing.assert_array_equal(embedder.encode(TEXTS[1]), first[1])
            assert embedder.rationales(TEXTS) == rationales
        assert written(embedder) == 6
        assert embedder.cache is not None and len(embedder.cache) == 6
        files = {"folder": tmp_path / "c" / "rationales.sqlite", "file": tmp_path / "c.sqlite"}
        files["default"] = grace_cache_dir / "rationales.sqlite"
        assert all(path.exists() == (name == kind) for name, path in files.items())

    def test_none_keeps_nothing(self, make_embedder: MakeEmbedder, grace_cache_dir: Path) -> None:
        embedder = make_embedder(cache=None)
        one, other = embedder.encode(TEXTS), embedder.encode(TEXTS)
        assert written(embedder) == 6 and embedder.cache is None and not grace_cache_dir.exists()
        np.testing.assert_allclose(one, other, atol=1e-6)

    def test_nothing_is_on_disk_before_the_first_row(self, make_embedder: MakeEmbedder, grace_cache_dir: Path) -> None:
        embedder = make_embedder(cache="default")
        embedder.encode(["", " "])
        embedder.encode(TEXTS, rationales=["", "x", "y"])
        assert not grace_cache_dir.exists()

    def test_another_embedder_of_the_same_policy_finds_the_rows_without_a_model_call(
        self, make_embedder: MakeEmbedder, tmp_path: Path
    ) -> None:
        first = make_embedder(cache=tmp_path).encode(TEXTS)
        second = make_embedder(cache=tmp_path)
        with forbidden_model(second):
            np.testing.assert_array_equal(second.encode(TEXTS), first)

    def test_a_cached_vector_is_that_of_the_engine(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        embedder.encode(TEXTS)
        np.testing.assert_allclose(embedder.encode(TEXTS), make_embedder(cache=None).encode(TEXTS), atol=1e-6)

    @pytest.mark.parametrize("spec", ["", "off", 5, True, b"x", MemoryCache])
    def test_a_cache_that_is_none_is_refused(self, make_embedder: MakeEmbedder, spec: Any) -> None:
        with pytest.raises(InputError, match=r"cache=.*: give 'default', 'memory', None"):
            make_embedder(cache=spec)


class TestIdentity:
    CHANGES = (
        {"max_new_tokens": 9},
        {"max_seq_length": 500},
        {"system_prompt": "Say what it is."},
        {"temperature": 0.5},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "top_k": 5},
        {"temperature": 0.5, "top_p": 0.5},
        {"model_kwargs": {"dtype": torch.bfloat16}},
    )

    @pytest.mark.parametrize("change", CHANGES, ids=str)
    def test_another_option_never_finds_the_rows(
        self, make_embedder: MakeEmbedder, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        original, changed = make_embedder(cache=tmp_path), make_embedder(cache=tmp_path, **change)
        expected = original.encode(TEXTS)
        found = changed.encode(TEXTS)
        assert written(changed) == 3
        assert original.fingerprint().differences(changed.fingerprint())
        np.testing.assert_allclose(found, make_embedder(cache=None, **change).encode(TEXTS), atol=1e-5)
        with forbidden_model(original), forbidden_model(changed):
            np.testing.assert_array_equal(original.encode(TEXTS), expected)
            np.testing.assert_array_equal(changed.encode(TEXTS), found)

    @pytest.mark.parametrize(
        "change", [{"seed": 3}, {"top_k": 5}, {"top_p": 0.5}, {"on_truncation": "ignore"}], ids=str
    )
    def test_an_option_that_changes_nothing_finds_them(
        self, make_embedder: MakeEmbedder, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        expected = make_embedder(cache=tmp_path).encode(TEXTS)
        same = make_embedder(cache=tmp_path, **change)  # greedy draws no numbers
        with forbidden_model(same):
            np.testing.assert_array_equal(same.encode(TEXTS), expected)

    def test_roles_never_share_rows_even_with_the_same_prompt(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory", system_prompt="Say what it is.")
        for encode in (embedder.encode, embedder.encode_query, embedder.encode_document):
            encode(TEXTS)
        assert written(embedder) == 9 and embedder.cache is not None and len(embedder.cache) == 9
        digests = {embedder.fingerprint(role).digest() for role in (None, "query", "document")}  # type: ignore[arg-type]
        assert len(digests) == 3
        assert {group.digest for group in embedder.cache.stats().by_fingerprint} == {digest.hex() for digest in digests}

    def test_no_rationale_is_another_row_than_a_short_one(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        bare, full = embedder.encode(TEXTS, rationale=False), embedder.encode(TEXTS)
        assert embedder.cache is not None and len(embedder.cache) == 6
        with forbidden_model(embedder):
            np.testing.assert_array_equal(embedder.encode(TEXTS, rationale=False), bare)
            np.testing.assert_array_equal(embedder.encode(TEXTS), full)

    def test_given_rationales_neither_read_nor_write_the_cache(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        embedder.encode(TEXTS, rationales=["On bread."] * 3)
        assert embedder.cache is not None and len(embedder.cache) == 0
        expected = embedder.encode(TEXTS)
        given = embedder.encode(TEXTS, rationales=["On bread."] * 3)
        assert np.abs(given - expected).max() > 1e-3
        mixed = embedder.preprocess([(TEXTS[0], None), (TEXTS[1], "On bread."), (TEXTS[2], None)])
        with torch.no_grad():
            found = embedder(mixed)["sentence_embedding"].numpy()
        np.testing.assert_allclose(found, np.stack([expected[0], given[1], expected[2]]), atol=1e-5)
        np.testing.assert_array_equal(embedder.encode(TEXTS), expected)

    def test_one_model_never_gets_the_rows_of_another(
        self, make_embedder: MakeEmbedder, make_model: Callable[..., PreTrainedModel], tiny_policy: Path, tmp_path: Path
    ) -> None:
        folders = []
        for seed in (0, 1):
            folder = tmp_path / "same" / "name" / str(seed) / "policy"
            make_model("qwen2", seed=seed).save_pretrained(folder)
            make_embedder().tokenizer.save_pretrained(folder)
            folders.append(folder)
        one, other = (make_embedder(folder, cache=tmp_path / "c") for folder in folders)
        assert np.abs(one.encode(TEXTS) - other.encode(TEXTS)).max() > 1e-3
        assert written(other) == 3
        (difference,) = one.fingerprint().differences(other.fingerprint())
        assert difference.startswith("weights: ") and "/0/policy')" in difference and "/1/policy')" in difference
        moved = folders[0].rename(tmp_path / "moved")
        again = make_embedder(moved, cache=tmp_path / "c")
        with forbidden_model(again):
            again.encode(TEXTS)

    def test_a_training_step_leaves_the_old_rows_behind(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        before, identity = embedder.encode(TEXTS), embedder.fingerprint()
        for parameter in embedder.writer.model.parameters():
            parameter.data += 0.02
        after = embedder.encode(TEXTS)
        assert np.abs(after - before).max() > 1e-3
        assert any(line.startswith("weights: ") for line in identity.differences(embedder.fingerprint()))
        for parameter in embedder.writer.model.parameters():
            parameter.data -= 0.02

    def test_rows_can_be_read_by_their_published_identity(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        (rationale,) = embedder.rationales("tide", role="query")
        prompt = embedder.writer.prompt(embedder.prompts["query"]).render(["tide"])[0]
        key = row_key(embedder.fingerprint("query").digest(), prompt.input_ids)
        assert embedder.cache is not None
        row = embedder.cache.get_many([key])[key]
        assert (row.token_ids, row.text) == (rationale.token_ids, rationale.text)
        np.testing.assert_allclose(row.vector / np.linalg.norm(row.vector), embedder.encode_query("tide"), atol=1e-6)
        (group,) = embedder.cache.stats().by_fingerprint
        assert group.description == embedder.fingerprint("query").describe()


class TestInterruption:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_finished_rows_survive_and_are_not_written_again(
        self, make_embedder: MakeEmbedder, tmp_path: Path, error: type[BaseException]
    ) -> None:
        texts = [f"{'word ' * (i % 7)}text number {i}" for i in range(3 * STORE_ROWS)]
        embedder = make_embedder(cache=tmp_path, max_new_tokens=2)
        finished = 0

        def stop_after_a_while() -> None:
            nonlocal finished
            finished += 1
            if finished == STORE_ROWS + 20:
                raise error("stop")

        with pytest.raises(error):
            embedder.encode(texts, on_row=stop_after_a_while)
        again = make_embedder(cache=tmp_path, max_new_tokens=2)
        assert again.cache is not None and len(again.cache) == STORE_ROWS + 20
        found = again.encode(texts)
        assert written(again) == 2 * STORE_ROWS - 20
        np.testing.assert_allclose(found, make_embedder(cache=None, max_new_tokens=2).encode(texts), atol=1e-5)

    def test_an_interrupt_inside_the_model_keeps_the_rows_before_it(
        self, make_embedder: MakeEmbedder, tmp_path: Path
    ) -> None:
        embedder = make_embedder(cache=tmp_path, max_new_tokens=2)
        embedder.writer.engine.max_batch_rows = 4  # type: ignore[attr-defined]
        texts = [f"text number {i}" for i in range(20)]
        embedder.encode("warm up")
        passes = 0

        def interrupt(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == 8:
                raise KeyboardInterrupt

        hook = embedder.writer.model.base_model.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            embedder.encode(texts)
        hook.remove()
        kept = len(SQLiteCache(tmp_path / "rationales.sqlite")) - 1
        assert 0 < kept < 20
        before = written(embedder)
        embedder.encode(texts)
        assert written(embedder) - before == 20 - kept


def test_rows_are_in_the_file_when_encode_returns(make_embedder: MakeEmbedder, tmp_path: Path) -> None:
    embedder = make_embedder(cache=tmp_path / "x.sqlite")
    embedder.encode(TEXTS)
    with sqlite3.connect(tmp_path / "x.sqlite") as raw:
        assert raw.execute("SELECT COUNT(*) FROM entries").fetchone() == (3,)
    raw.close()


@pytest.mark.parametrize("cache", [None, "memory"])
def test_an_engine_that_loses_a_text_is_found_out(tiny_policy: Path, cache: str | None) -> None:
    class Forgetful(TransformersEngine):
        def run(
            self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
        ) -> Iterator[tuple[int, RationaleOutput]]:
            yield from list(super().run(requests, sampling))[1:]

    embedder = GraceEmbedder(tiny_policy, cache=cache, device="cpu", max_new_tokens=3)
    embedder.writer.engine = Forgetful(embedder.writer.model, end_tokens=[])
    with pytest.raises(EngineError, match="no output for 1 of 3 texts"):
        embedder.encode(["a", "bb", "ccc"])
