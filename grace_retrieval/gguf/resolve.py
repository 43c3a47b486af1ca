"""Which GGUF file a path means."""

from __future__ import annotations

from pathlib import Path

from grace_retrieval.errors import ModelLoadError

__all__ = ["find_gguf"]


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a file or folder means; None if it means something else.

    A folder that has a config.json is a model of its own, whatever else lies in it. Of several files, the one called
    model.gguf is meant.

    Raises:
        ModelLoadError: If a folder holds several files, none of them called model.gguf.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if not path.is_dir() or any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and not file.name.startswith("."))
    if len(found) > 1 and not (path / "model.gguf").is_file():
        raise ModelLoadError(
            f"{path} holds {len(found)} GGUF files: {', '.join(file.name for file in found)}. Give one of them, such "
            f"as {found[0]}, or call the one that is meant model.gguf."
        )
    if len(found) > 1:
        return path / "model.gguf"
    return found[0] if found else None
