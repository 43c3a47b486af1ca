"""`grace_retrieval.training`: every name is there, nothing is imported too early, and a missing extra is named."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import grace_retrieval.training as names


@pytest.mark.parametrize("name", names.__all__)
def test_a_name_is_that_of_the_package(name: str) -> None:
    pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")
    (module,) = (module for module, offered in names._MODULES.items() if name in offered)
    assert getattr(names, name) is getattr(importlib.import_module(f"grace_training.{module}"), name)


def test_the_list_for_type_checkers_is_the_list_for_everyone() -> None:
    tree = ast.parse(Path(names.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {a.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert imported == set(names.__all__) == set(dir(names))
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        names.Trainer  # noqa: B018


def test_nothing_is_imported_early_and_a_missing_package_names_the_command() -> None:
    code = """
import sys
import grace_retrieval, grace_retrieval.training as training
print(sorted({"torch", "trl", "transformers", "grace_training"} & set(sys.modules)))
sys.modules["trl"] = None  # as if it were not installed
try:
    training.GraceTrainer
except grace_retrieval.MissingExtraError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == "[]"
    assert second.endswith("needs 'trl'. Install it with: pip install 'grace-retrieval[train]'")
