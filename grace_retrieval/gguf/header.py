"""A GGUF file: its metadata and tensors, and which of the metadata were used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.errors import ModelLoadError

if TYPE_CHECKING:
    from gguf import ReaderTensor

__all__ = ["GGUFHeader", "hash_file"]

_MAGIC = b"GGUF"


class GGUFHeader:
    """Metadata and tensors of a GGUF file; the tensors stay on the disk.

    Args:
        path: The file.

    Attributes:
        path: The file.
        architecture: Name of the architecture, such as "llama"; also the prefix of its metadata.
        tensors: Tensors by their names in the file.

    Raises:
        ModelLoadError: If the file is no GGUF, is cut short, or is a part of several.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            with open(path, "rb") as stream:
                start = stream.read(4)
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
        if start != _MAGIC:
            what = "is empty" if not start else f"starts with {start!r} and not with {_MAGIC!r}"
            raise ModelLoadError(
                f"{path} is no GGUF file: it {what}. Download it again, or give a folder with config.json and "
                "*.safetensors."
            )
        try:
            reader = GGUFReader(path)
            self._fields: dict[str, Any] = {name: field for name, field in reader.fields.items()}
            self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
            raise ModelLoadError(
                f"{path} is damaged or cut short ({error}). Download or copy the file again."
            ) from error
        self._used: set[str] = set()
        self.architecture = str(self.get("general.architecture") or "")
        if (parts := self.get("split.count")) is not None and int(parts) > 1:
            raise ModelLoadError(
                f"{path} is one of {parts} parts of a model. Join them with llama.cpp's `llama-gguf-split --merge`."
            )
        if not self.architecture or not self.tensors:
            raise ModelLoadError(f"{path} holds no model: it has metadata or a vocabulary alone.")

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the metadata: int, float, bool, str, or a list of these; `default` where there is none."""
        self._used.add(name)
        return self._fields[name].contents() if name in self._fields else default

    def own(self, name: str, default: Any = None) -> Any:
        """A value of the architecture's metadata, without its prefix; `default` where there is none."""
        return self.get(f"{self.architecture}.{name}", default)

    def require(self, name: str) -> Any:
        """A value of the architecture's metadata that has to be there.

        Raises:
            ModelLoadError: If it is not.
        """
        if (value := self.own(name)) is None:
            raise ModelLoadError(
                f"{self.path} lacks {self.architecture}.{name}, which says how the model is built. Download it again, "
                "or convert it again with llama.cpp's convert_hf_to_gguf.py."
            )
        return value

    def end_tokens(self) -> list[int]:
        """Tokens that end a turn: the end of a text, and that of a turn if the file names one."""
        named = (self.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
        return list(dict.fromkeys(int(token) for token in named if token is not None))

    def unused(self) -> list[str]:
        """Metadata of the architecture that nobody has asked for."""
        prefix = f"{self.architecture}."
        return sorted(name for name in self._fields if name.startswith(prefix) and name not in self._used)


def hash_file(path: Path) -> str:
    """sha256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
