"""What the command line says besides its result: `--verbose`, and everything on stderr as JSON lines."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

from rich.console import Console

__all__ = ["JsonLines", "json_lines_wanted", "start_logging"]

_LEVELS = {"Error: ": "error", "Warning: ": "warning"}
_state = {"json": False}


def json_lines_wanted() -> bool:
    """Whether stderr is to be JSON lines."""
    return _state["json"]


def start_logging(*, verbose: bool, json_lines: bool) -> None:
    """Set up what a command logs.

    Args:
        verbose: Whether our INFO and other libraries' warnings are shown.
        json_lines: Whether everything on stderr is JSON lines.
    """
    _state["json"] = json_lines
    ours = logging.getLogger("grace_retrieval")
    ours.setLevel(logging.INFO if verbose else logging.NOTSET)
    for handler in [handler for handler in ours.handlers if isinstance(handler, _ToStderr)]:
        ours.removeHandler(handler)  # of an earlier command of this process
    if verbose or json_lines:
        ours.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    """Records of our loggers on stderr, in the form that was asked for."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if _state["json"]:
            _write(record.levelname.lower(), record.getMessage(), logger=record.name)
        else:
            sys.stderr.write(f"{record.name}: {record.getMessage()}\n")


class JsonLines(Console):
    """A console whose every print is a JSON object with time, level and message."""

    @property
    def is_terminal(self) -> bool:
        """No bars and spinners."""
        return False

    def print(self, *objects: Any, **options: Any) -> None:
        """Write a line."""
        message = " ".join(str(item) for item in objects).strip()
        for prefix, level in _LEVELS.items():
            if message.startswith(prefix):
                _write(level, message.removeprefix(prefix))
                return
        if message:
            _write("info", message)


def _write(level: str, message: str, **more: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": now, "level": level, "message": message, **more}, ensure_ascii=False) + "\n")
