"""Dockerfile and compose file: what they copy is there, and what they call is a command with these options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from grace_retrieval.cli import app

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    compose = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text(encoding="utf-8"))
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (ours,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    return [json.loads(ours), *(service["command"] for service in compose["services"].values())]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_container_runs_a_command_that_there_is(command: list[str]) -> None:
    found: Any = get_command(app)
    words = list(command)
    while words and (inner := getattr(found, "get_command", lambda *_: None)(None, words[0])):
        found = inner
        words.pop(0)
    known = {option for parameter in found.params for option in parameter.opts}
    given = [word for word in words if word.startswith("--")]
    assert found.name in ("serve", "build") and set(given) <= known


def test_the_image_is_made_of_what_is_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert "grace_retrieval" in copied and all((ROOT / name).exists() for name in copied)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    assert sorted(kept) == sorted(copied)
    (extras,) = re.findall(r'"\.\[(.*)\]"', dockerfile)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in pyproject for extra in extras.split(","))
