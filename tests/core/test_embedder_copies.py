"""Saving, loading, copies, threads and processes: the same embeddings everywhere, and one cache."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from grace_retrieval import DOCUMENT_PROMPT, GraceEmbedder, MemoryCache, ModelLoadError, SQLiteCache

pytestmark = pytest.mark.alone

MakeEmbedder = Callable[..., GraceEmbedder]

TEXTS = ["What causes ocean tides?", "The moon pulls.", "Bread rises.", ""]


def written(embedder: GraceEmbedder) -> int:
    return embedder.writer.engine.statistics()["texts"]


class TestSaving:
    @pytest.fixture
    def original(self, make_embedder: MakeEmbedder) -> GraceEmbedder:
        return make_embedder(
            prompts={"query": "Ask.", "topic": "Name the topic."},
            max_new_tokens=6,
            max_seq_length=300,
            temperature=0.5,
            top_k=7,
            top_p=0.9,
            seed=3,
            truncate_dim=16,
        )

    def test_a_saved_model_comes_back_the_same(
        self, original: GraceEmbedder, make_embedder: MakeEmbedder, tmp_path: Path
    ) -> None:
        folder = tmp_path / "saved"
        original.writer.configure(system_prompt="Say what it is.")
        original.save_pretrained(str(folder))
        again = GraceEmbedder(folder, cache=None, device="cpu")
        for one, other in [
            (original.encode(TEXTS), again.encode(TEXTS)),
            (original.encode_query(TEXTS), again.encode_query(TEXTS)),
            (original.encode(TEXTS, prompt_name="topic"), again.encode(TEXTS, prompt_name="topic")),
        ]:
            assert one.shape == (4, 16)
            np.testing.assert_allclose(other, one, atol=1e-6)
        assert again.prompts == {"query": "Ask.", "document": DOCUMENT_PROMPT, "topic": "Name the topic."}
        assert again.writer.get_config_dict() == original.writer.get_config_dict()
        assert original.fingerprint("query").differences(again.fingerprint("query")) == []

    def test_options_given_at_loading_win_over_saved_ones(self, original: GraceEmbedder, tmp_path: Path) -> None:
        original.save_pretrained(str(tmp_path))
        again = GraceEmbedder(tmp_path, cache=None, device="cpu", max_new_tokens=3, temperature=0, system_prompt="New.")
        options = again.writer.get_config_dict()
        assert (options["max_new_tokens"], options["temperature"], options["seed"]) == (3, 0, 3)
        assert options["system_prompt"] == again.prompts["query"] == again.prompts["document"] == "New."

    def test_a_saved_folder_is_that_of_a_causal_lm_and_holds_no_pickle(
        self, original: GraceEmbedder, tmp_path: Path
    ) -> None:
        original.save_pretrained(str(tmp_path))
        names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert {"grace_config.json", "model.safetensors", "modules.json", "tokenizer.json", "README.md"} <= names
        assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py", ".sqlite"))}
        types = [module["type"] for module in json.loads((tmp_path / "modules.json").read_text())]
        assert types[0] == "grace_retrieval.rationale_transformer.RationaleTransformer"
        assert all(name.startswith("sentence_transformers.") for name in types[1:])
        model = AutoModelForCausalLM.from_pretrained(next(tmp_path.rglob("model.safetensors")).parent)
        for name, tensor in original.writer.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
        tokenizer = AutoTokenizer.from_pretrained(next(tmp_path.rglob("tokenizer.json")).parent)
        assert tokenizer.chat_template == original.tokenizer.chat_template

    def test_saving_generates_nothing(self, original: GraceEmbedder, tmp_path: Path) -> None:
        hook = original.writer.model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the policy was run"))
        original.save_pretrained(str(tmp_path))
        hook.remove()
        assert written(original) == 0

    def test_stock_sentence_transformers_asks_for_trust_before_it_runs_our_class(
        self, original: GraceEmbedder, tmp_path: Path
    ) -> None:
        original.save_pretrained(str(tmp_path))
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(str(tmp_path), device="cpu")

    def test_a_class_of_others_is_still_not_loaded_without_trust(self, original: GraceEmbedder, tmp_path: Path) -> None:
        original.save_pretrained(str(tmp_path))
        modules = json.loads((tmp_path / "modules.json").read_text())
        modules[1]["type"] = "evil.Pooling"
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
        with pytest.raises((ModelLoadError, ValueError), match="trust_remote_code"):
            GraceEmbedder(tmp_path, cache=None)
        assert not (tmp_path / "executed").exists()

    def test_a_saved_bfloat16_model_keeps_its_weights(self, make_embedder: MakeEmbedder, tmp_path: Path) -> None:
        half = make_embedder(model_kwargs={"dtype": torch.bfloat16})
        half.save_pretrained(str(tmp_path))
        again = GraceEmbedder(tmp_path, cache=None, device="cpu", model_kwargs={"dtype": torch.bfloat16})
        np.testing.assert_array_equal(
            again.encode(TEXTS, rationales=["x"] * 4), half.encode(TEXTS, rationales=["x"] * 4)
        )


class TestCopies:
    @pytest.mark.parametrize("how", ["pickle", "deepcopy"])
    def test_a_copy_embeds_alike_and_is_independent(self, make_embedder: MakeEmbedder, how: str) -> None:
        embedder = make_embedder(cache="memory", temperature=0.5)
        expected = embedder.encode(TEXTS)
        copied = copy.deepcopy(embedder) if how == "deepcopy" else pickle.loads(pickle.dumps(embedder))
        assert isinstance(copied, GraceEmbedder) and copied.prompts == embedder.prompts
        np.testing.assert_allclose(copied.encode(TEXTS), expected, atol=1e-6)
        assert written(copied) == 3, "rows in memory stay where they are"
        with torch.no_grad():
            copied.writer.model.get_input_embeddings().weight.add_(0.1)
        assert np.abs(copied.encode(TEXTS) - expected).max() > 1e-4
        np.testing.assert_array_equal(embedder.encode(TEXTS), expected)
        assert written(embedder) == 3

    def test_a_copy_shares_the_cache_file(self, make_embedder: MakeEmbedder, tmp_path: Path) -> None:
        embedder = make_embedder(cache=tmp_path / "x.sqlite")
        expected = embedder.encode(TEXTS)
        copied = pickle.loads(pickle.dumps(embedder))
        np.testing.assert_array_equal(copied.encode(TEXTS), expected)
        assert written(copied) == 0
        assert isinstance(copied.cache, SQLiteCache) and copied.cache is not embedder.cache
        copied.cache.close()

    def test_an_embedder_in_use_can_be_copied(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        expected = embedder.encode(TEXTS)
        copies: list[GraceEmbedder] = []

        def copy_once() -> None:
            if not copies:
                copies.append(pickle.loads(pickle.dumps(embedder)))

        embedder.encode(TEXTS, on_row=copy_once)
        np.testing.assert_allclose(copies[0].encode(TEXTS), expected, atol=1e-6)


class TestThreads:
    def test_sixteen_threads_share_an_embedder_and_its_cache(self, make_embedder: MakeEmbedder, tmp_path: Path) -> None:
        embedder = make_embedder(cache=tmp_path / "x.sqlite", max_new_tokens=4)
        texts = [f"text number {i} of some" for i in range(24)]
        reference = make_embedder(cache=None, max_new_tokens=4)
        expected = {
            "": reference.encode(texts),
            "query": reference.encode_query(texts),
            "document": reference.encode_document(texts),
        }
        start = threading.Barrier(16)

        def work(number: int) -> None:
            start.wait()
            role = ("", "query", "document")[number % 3]
            encode: Callable[..., Any] = getattr(embedder, f"encode_{role}") if role else embedder.encode
            for first in range(number % 5, 20, 5):
                chosen = slice(first, first + 5)
                np.testing.assert_allclose(encode(texts[chosen]), expected[role][chosen], atol=1e-5)
            embedder.encode(texts[0], prompt=f"A prompt of thread {number}.")
            assert len(embedder.rationales(texts[:2])) == 2

        with ThreadPoolExecutor(16) as pool:
            for future in [pool.submit(work, number) for number in range(16)]:
                future.result()
        assert embedder.cache is not None and len(embedder.cache) == 3 * 24 + 16
        assert embedder.cache.verify().ok


class TestProcesses:
    def test_a_pool_of_two_workers_shares_the_cache_file(self, make_embedder: MakeEmbedder, tmp_path: Path) -> None:
        embedder = make_embedder(cache=tmp_path / "x.sqlite")
        texts = [f"text number {i}" for i in range(12)]
        queries = embedder.encode_query(texts[:3])
        pool = embedder.start_multi_process_pool(["cpu", "cpu"])
        try:
            found = embedder.encode([*texts, "", texts[0]], pool=pool, chunk_size=3)
            given = embedder.encode(texts[:4], pool=pool, chunk_size=2, rationales=["On tides.", "", "x", "y"])
            bare = embedder.encode(texts[:4], pool=pool, chunk_size=2, rationale=False)
            assert (embedder.encode_query(texts[:3], pool=pool) == queries).all()
        finally:
            embedder.stop_multi_process_pool(pool)
        assert written(embedder) == 3, "the workers did the rest"
        reference = make_embedder(cache=None)
        np.testing.assert_allclose(found, reference.encode([*texts, "", texts[0]]), atol=1e-5)
        np.testing.assert_allclose(
            given, reference.encode(texts[:4], rationales=["On tides.", "", "x", "y"]), atol=1e-5
        )
        np.testing.assert_allclose(bare, reference.encode(texts[:4], rationale=False), atol=1e-5)
        assert embedder.cache is not None and len(embedder.cache) == 12 + 3 + 4
        np.testing.assert_allclose(embedder.encode(texts), found[:12], atol=1e-6)
        assert written(embedder) == 3, "their rows are found here"


def test_an_embedder_may_be_given_a_cache_of_ones_own(make_embedder: MakeEmbedder) -> None:
    cache = MemoryCache()
    one, other = make_embedder(cache=cache), make_embedder(cache=cache)
    one.encode(TEXTS)
    other.encode(TEXTS)
    assert one.cache is other.cache is cache and (written(one), written(other)) == (3, 0)
