"""The public names: complete, sorted, importable, and cheap to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import grace_retrieval

ROOT = Path(grace_retrieval.__file__).parents[1]


def run_child(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_is_sorted_as_ruff_sorts_it_and_without_repeats() -> None:
    names = grace_retrieval.__all__
    kind = {name: 0 if name.isupper() else 1 if name[0].isupper() else 2 for name in names}
    assert names == sorted(names, key=lambda name: (kind[name], name))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", grace_retrieval.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(grace_retrieval, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
        assert value.__module__.startswith("grace_retrieval.")


def test_every_public_class_of_the_core_is_listed() -> None:
    """What a public module offers by `__all__` and another public name shows to users is in the package's list."""
    for module in ("errors", "engine", "embedder", "rationale"):
        offered = importlib.import_module(f"grace_retrieval.{module}").__all__
        missing = [
            name
            for name in offered
            if name not in grace_retrieval.__all__
            and inspect.isclass(getattr(importlib.import_module(f"grace_retrieval.{module}"), name))
        ]
        assert not missing, f"grace_retrieval.{module}: {missing}"


def test_the_list_for_type_checkers_is_the_list_for_everyone() -> None:
    tree = ast.parse(Path(grace_retrieval.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname or alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported | {"__version__"} == set(grace_retrieval.__all__)
    assert grace_retrieval.__dir__() == grace_retrieval.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'grace_retrieval' has no attribute 'Embedder'"):
        grace_retrieval.Embedder  # noqa: B018


def test_the_version_is_a_release_number() -> None:
    numbers = grace_retrieval.__version__.split(".")
    assert len(numbers) == 3 and all(number.isdigit() for number in numbers[:2])


def test_importing_the_package_its_errors_and_its_cache_loads_no_heavy_library() -> None:
    code = """
import sys
import grace_retrieval, grace_retrieval.errors, grace_retrieval.cache
from grace_retrieval import InputError, Rationale, SamplingOptions, open_cache
heavy = {"torch", "transformers", "sentence_transformers", "tokenizers", "pandas", "pyarrow", "scipy", "sklearn"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_child(code).strip() == "[]"


def test_importing_the_package_reads_no_network_and_makes_no_files(tmp_path: Path) -> None:
    code = "import os, grace_retrieval; grace_retrieval.open_cache('default'); print(os.listdir(os.environ['HOME']))"
    home = str(tmp_path)
    assert run_child(code, HOME=home, XDG_CACHE_HOME=home, GRACE_CACHE_DIR=str(tmp_path / "cache")).strip() == "[]"


def test_errors_are_also_what_callers_would_expect() -> None:
    for name, builtin in {
        "InputError": ValueError,
        "ModelLoadError": OSError,
        "ModelMismatchError": ValueError,
        "MissingExtraError": ImportError,
        "EngineError": RuntimeError,
        "NonFiniteEmbeddingError": RuntimeError,
        "CacheError": RuntimeError,
        "CacheCorruptedError": RuntimeError,
    }.items():
        error = getattr(grace_retrieval, name)
        assert issubclass(error, builtin) and issubclass(error, grace_retrieval.GraceError), name


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    error = grace_retrieval.MissingExtraError("vllm", "vllm", "The vLLM engine")
    assert str(error) == "The vLLM engine needs 'vllm'. Install it with: pip install 'grace-retrieval[vllm]'"
    assert error.name == "vllm"


@pytest.mark.parametrize(
    "module",
    [
        "rationale",
        "near",
        "spellings",
        "fingerprint",
        "cache.records",
        "cache.limits",
        "cache.opening",
        "indexing.documents",
    ],
)
def test_the_examples_in_the_documentation_are_right(module: str) -> None:
    import doctest

    found = doctest.testmod(importlib.import_module(f"grace_retrieval.{module}"))
    assert found.attempted > 0 and found.failed == 0


class TestRationale:
    @pytest.mark.parametrize(
        ("text", "reasoning", "summary"),
        [
            ("<think> a </think> b", "a", "b"),
            (" <think>\na\nc\n</think>\n\nb \n", "a\nc", "b"),
            ("a </think> b", "a", "b"),  # the template opened the tag
            ("<think> never closed", "never closed", ""),
            ("no tags at all ", "", "no tags at all"),
            ("<think></think>", "", ""),
            ("<think>a</think>b</think>c", "a", "b</think>c"),
            ("", "", ""),
        ],
    )
    def test_reasoning_and_summary(self, text: str, reasoning: str, summary: str) -> None:
        rationale = grace_retrieval.Rationale(text=text, token_ids=(1,), truncated=False, text_truncated=False)
        assert (rationale.reasoning, rationale.summary, str(rationale)) == (reasoning, summary, text)
        tagged = {"reasoning": reasoning, "summary": summary}
        assert rationale.parts == (tagged if "think>" in text else {"rationale": text.strip()})
