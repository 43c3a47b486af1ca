"""shared_embedder and EmbedderSettings: one load for each configuration, and settings that stay what they say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import grace_retrieval.embedder
from grace_retrieval import GraceEmbedder, InputError, ModelLoadError, shared_embedder, unload_embedders
from grace_retrieval.settings import EmbedderSettings

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "device": "cpu"}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were loaded."""
    loaded: list[str] = []
    original = GraceEmbedder.__init__

    def counted(self: GraceEmbedder, model: Any = "grace-nano", **kwargs: Any) -> None:
        loaded.append(str(model))
        original(self, model, **kwargs)

    monkeypatch.setattr(grace_retrieval.embedder.GraceEmbedder, "__init__", counted)
    return loaded


def test_one_load_for_a_configuration_however_many_ask(tiny_policy: Path, loads: list[str]) -> None:
    start = threading.Barrier(16)

    def ask(_: int) -> GraceEmbedder:
        start.wait()
        return shared_embedder(str(tiny_policy), **OPTIONS)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    assert len({id(embedder) for embedder in found}) == 1 and len(loads) == 1
    assert shared_embedder(str(tiny_policy), **OPTIONS, seed=None) is found[0], "None is what it is without"
    assert shared_embedder(str(tiny_policy), **OPTIONS, cache="default") is found[0]
    assert shared_embedder(str(tiny_policy), **OPTIONS, system_prompt="Other.") is not found[0]
    assert shared_embedder(str(tiny_policy), **OPTIONS, cache=None) is not found[0]
    unload_embedders()
    assert shared_embedder(str(tiny_policy), **OPTIONS) is not found[0]


def test_the_default_cache_is_where_the_environment_says_when_it_is_asked_for(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shared_embedder(str(tiny_policy), **OPTIONS)
    monkeypatch.setenv("GRACE_CACHE_DIR", str(tmp_path / "elsewhere"))
    other = shared_embedder(str(tiny_policy), **OPTIONS)
    assert one is not other and str(tmp_path / "elsewhere") in repr(other.cache)


def test_a_load_that_failed_is_tried_again(tiny_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(ModelLoadError, match="does not exist"):
        shared_embedder(str(folder), **OPTIONS)
    folder.symlink_to(tiny_policy)
    assert len(shared_embedder(str(folder), **OPTIONS).embed_query("x")) == 32


def test_an_option_out_of_range_is_an_error_at_the_first_text(tiny_policy: Path) -> None:
    settings = EmbedderSettings(model=str(tiny_policy), **OPTIONS, top_p=3.0)
    with pytest.raises(InputError, match=r"top_p=3\.0"):
        settings.embed_query("x")
    with pytest.raises(InputError, match=r"top_p=3\.0"):
        asyncio.run(settings.aembed_query("x"))


def test_rationale_false_embeds_texts_alone(tiny_policy: Path) -> None:
    settings = EmbedderSettings(model=str(tiny_policy), **OPTIONS, rationale=False)
    expected = settings.embedder.encode_document("a text", rationale=False)
    assert settings.embed_documents(["a text"])[0] == pytest.approx(expected, abs=1e-6)
    assert settings.embedder.writer.engine.statistics()["new_tokens"] == 0


@pytest.mark.parametrize("change", ["assigned", "copied"])
def test_changed_settings_are_another_embedder(tiny_policy: Path, change: str) -> None:
    settings = EmbedderSettings(model=str(tiny_policy), **OPTIONS)
    before = settings.embedder
    if change == "assigned":
        settings.system_prompt = "Say what it is."
        changed = settings
    else:
        changed = settings.model_copy(update={"system_prompt": "Say what it is."})
        assert settings.embedder is before
    assert changed.embedder is not before and changed.embedder.prompts["query"] == "Say what it is."


async def test_two_hundred_calls_before_the_model_is_there_wait_for_one_load(
    tiny_policy: Path, loads: list[str]
) -> None:
    settings = EmbedderSettings(model=str(tiny_policy), **OPTIONS)
    beats = 0
    work = asyncio.gather(*(settings.aembed_query(f"query {n}") for n in range(200)))
    while not work.done():
        beats += 1
        await asyncio.sleep(0.001)
    assert len(await work) == 200 and len(loads) == 1 and beats > 5
    assert settings.embedder.writer.engine.statistics()["texts"] == 200


def test_copies_are_equal_and_dumps_come_back(tiny_policy: Path) -> None:
    settings = EmbedderSettings(model=str(tiny_policy), **OPTIONS, prompts={"query": "Ask."})
    settings.embed_query("x")
    again = EmbedderSettings.model_validate_json(settings.model_dump_json())
    assert again == settings and again.embedder is settings.embedder
    assert EmbedderSettings(**{"model": settings.model, **settings.split()["options"]}) == settings
    assert settings != EmbedderSettings(model=str(tiny_policy), **OPTIONS)


def test_the_options_of_a_live_embedder_load_it_again(tiny_policy: Path, tmp_path: Path) -> None:
    live = GraceEmbedder(
        tiny_policy,
        cache=tmp_path / "x.sqlite",
        device="cpu",
        prompts={"query": "Ask.", "document": "Tell."},
        max_new_tokens=6,
        max_seq_length=300,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=3,
        truncate_dim=16,
    )
    again = EmbedderSettings.model_validate_json(EmbedderSettings(model=live).model_dump_json())
    assert again.embedder is not live
    assert again.vector_identity().differences(live.vector_identity()) == []
    vector = live.embed_query("x")
    assert again.embed_query("x") == vector
    assert again.embedder.writer.engine.statistics()["texts"] == 0, "it has the same cache"


def test_neither_the_settings_nor_the_shared_parts_load_torch() -> None:
    code = """
import sys
import grace_retrieval
from grace_retrieval import register, shared_embedder, unload_embedders
import grace_retrieval.settings, grace_retrieval.batching
grace_retrieval.settings.EmbedderSettings(model="grace-nano")
print(sorted({"torch", "transformers", "sentence_transformers", "numpy.random"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("module", ["registry", "settings"])
def test_the_examples_in_the_documentation_are_right(module: str) -> None:
    import doctest
    import importlib

    found = doctest.testmod(importlib.import_module(f"grace_retrieval.{module}"))
    assert found.attempted > 0 and found.failed == 0
