"""What a row belongs to: the fingerprint of everything that may change it, and the key of one text under it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grace_retrieval.errors import InputError

__all__ = ["DIGEST_BYTES", "Fingerprint", "check_digests", "hash_files", "pack_ids", "row_key"]

DIGEST_BYTES = 16
"""Length of keys, fingerprint digests and checksums."""

# Names that mean other weights tomorrow; keying rows on them would return one model's rows for another.
_MUTABLE_REVISIONS = frozenset({"main", "master", "head", "latest"})


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that may change a row, apart from the text itself.

    `model` is for messages and statistics only. It is not part of the digest: `weights` and `tokenizer`
    already say which model this is, and a folder that was moved or renamed must still find its rows.

    Attributes:
        model: Name or folder of the model.
        weights: Content hash of the weights, or a commit of the hub; never a branch name.
        tokenizer: Hash of the tokenizer and the chat template.
        prompt: The whole system prompt.
        role: `"query"`, `"document"` or `""`.
        generation: Generation options that matter (max_new_tokens, temperature, seed, ...); JSON values.
        budget: Token budgets (max_seq_length, ...); JSON values.
        dtype: Computation dtype, such as `"bfloat16"`.
        engine: Engine family, such as `"transformers"`.

    Raises:
        InputError: A field is of the wrong type, empty where it identifies something, or not JSON.

    Example:
        >>> from dataclasses import replace
        >>> query = Fingerprint(
        ...     model="m", weights="1f3a", tokenizer="77b0", prompt="Explain.", role="query", dtype="float32",
        ...     engine="transformers", generation={"temperature": 0}, budget={"max_seq_length": 512},
        ... )
        >>> document = replace(query, role="document")
        >>> query.digest() == document.digest()
        False
        >>> query.differences(document)
        ["role: 'query' here, 'document' there"]
    """

    model: str
    weights: str
    tokenizer: str
    prompt: str
    role: str
    generation: Mapping[str, Any]
    budget: Mapping[str, Any]
    dtype: str
    engine: str

    def __post_init__(self) -> None:
        """Check the fields and brings the mappings into canonical form."""
        for name in ("model", "weights", "tokenizer", "prompt", "role", "dtype", "engine"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"{name} is {type(value).__name__}: give a str.")
            if not value and name in ("weights", "tokenizer", "dtype", "engine"):
                raise InputError(f"{name}='': give a value; it tells one model's rows from another's.")
        if self.weights.lower() in _MUTABLE_REVISIONS:
            raise InputError(f"weights={self.weights!r} is a name that moves: give a content hash or a commit.")
        if self.role not in ("query", "document", ""):
            raise InputError(f"role={self.role!r}: give 'query', 'document' or ''.")
        for name in ("generation", "budget"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is {type(value).__name__}: give a mapping.")
            # A copy, so that a later change to the caller's dict cannot change the digest.
            object.__setattr__(self, name, _canonical(value, name))

    def __hash__(self) -> int:
        """Hash the text fields; the mappings take part in equality only."""
        return hash((self.weights, self.tokenizer, self.prompt, self.role, self.dtype, self.engine))

    def digest(self) -> bytes:
        """Digest over the canonical JSON of every field except `model`.

        Returns:
            16 bytes.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        # Not ASCII: escaped, two lone surrogates and the character they stand for would be the same bytes.
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        encoded = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES, person=b"grace.identity.1").digest()

    def describe(self) -> dict[str, Any]:
        """All fields and the digest in hexadecimal, as JSON values.

        Returns:
            A new dict; `Fingerprint.from_description` reads it back.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("generation", "budget"):
            content[name] = _canonical(content[name], name)
        return {**content, "digest": self.digest().hex()}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Fingerprint:
        """Read back what `describe` gave, for instance from an index manifest.

        Args:
            description: The dict, also after a trip through JSON.

        Returns:
            The fingerprint.

        Raises:
            InputError: A field is missing or wrong.
        """
        missing = [field.name for field in fields(cls) if field.name not in description]
        if missing:
            raise InputError(f"the fingerprint's description lacks {', '.join(missing)}")
        return cls(**{field.name: description[field.name] for field in fields(cls)})

    def differences(self, other: Fingerprint) -> list[str]:
        """Say field by field how another fingerprint differs.

        Args:
            other: The other fingerprint.

        Returns:
            One line a difference, such as `"budget.max_seq_length: 512 here, 256 there"`; empty exactly if
            both have the same digest. A difference in weights or tokenizer names both models.
        """
        lines: list[str] = []
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name in ("generation", "budget"):
                for name in sorted({*ours, *theirs}):
                    pair = tuple(_show(side[name]) if name in side else "absent" for side in (ours, theirs))
                    if _dump(ours, name) != _dump(theirs, name):
                        lines.append(f"{field.name}.{name}: {pair[0]} here, {pair[1]} there")
            elif field.name in ("weights", "tokenizer") and ours != theirs:
                lines.append(
                    f"{field.name}: {_show(ours)} (model {_show(self.model)}) here,"
                    f" {_show(theirs)} (model {_show(other.model)}) there"
                )
            elif field.name != "model" and ours != theirs:
                lines.append(f"{field.name}: {_show(ours)} here, {_show(theirs)} there")
        return lines


def row_key(fingerprint_digest: bytes, input_ids: Sequence[int]) -> bytes:
    """Key of one text: its rendered input ids under a fingerprint.

    Args:
        fingerprint_digest: `Fingerprint.digest()`; 16 bytes.
        input_ids: Input ids with the chat template around the text, each from 0 to 2**32 - 1.

    Returns:
        16 bytes.

    Raises:
        InputError: The digest has another length or an id does not fit.

    Example:
        >>> row_key(bytes(16), [1, 2]) == row_key(bytes(16), [1, 2, 2])
        False
    """
    check_digests((fingerprint_digest,), "a fingerprint digest")
    content = fingerprint_digest + pack_ids(input_ids)
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES, person=b"grace.row-key.1").digest()


def pack_ids(ids: Sequence[int]) -> bytes:
    r"""Pack token ids as little-endian uint32.

    Args:
        ids: Token ids, each from 0 to 2**32 - 1; a numpy array or a tensor of one dimension also does.

    Returns:
        Four bytes an id.

    Raises:
        InputError: An id is negative, too large or no integer.

    Example:
        >>> pack_ids([1, 2])
        b'\x01\x00\x00\x00\x02\x00\x00\x00'
    """
    tolist = getattr(ids, "tolist", None)
    try:
        # bytes would be read as machine words, str as nothing useful.
        if isinstance(ids, (bytes, bytearray, str)):
            raise TypeError("a string")
        packed = array("I", ids if tolist is None else tolist())
    except (TypeError, OverflowError) as error:
        raise InputError(f"token ids: give integers from 0 to 4294967295 ({error}).") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def check_digests(digests: Iterable[object], what: str) -> None:
    """Refuse keys that no row can have, which would otherwise look like misses.

    Args:
        digests: Keys or fingerprint digests.
        what: Their name in the message.

    Raises:
        InputError: One of them is not 16 bytes.
    """
    for digest in digests:
        if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
            raise InputError(f"{what} is {digest!r}: give {DIGEST_BYTES} bytes.")


def hash_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Hash the content of files, in the order of their names and read in pieces.

    A file counts under its name, so a moved folder keeps its hash. Only where two files share a name do they
    count under their path below the folder that holds all the files.

    Args:
        paths: Files, in any order.

    Returns:
        32 hexadecimal digits.

    Raises:
        InputError: No path was given, or one is not a file.
    """
    files = sorted({Path(os.path.abspath(path)) for path in paths})
    if not files:
        raise InputError("hash_files needs at least one file")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is not a file")
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        root = os.path.commonpath([file.parent for file in files])
        names = [file.relative_to(root).as_posix() for file in files]
    total = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"grace.files.1")
    for name, file in sorted(zip(names, files, strict=True)):
        encoded = os.fsencode(name)
        total.update(len(encoded).to_bytes(8, "little") + encoded + _content_digest(file))
    return total.hexdigest()


def _content_digest(path: Path) -> bytes:
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            state.update(buffer[:count])
    return state.digest()


def _canonical(value: Any, where: str) -> Any:
    """Copy a JSON value; whole floats become ints, so that 1 and 1.0 are one option."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise InputError(f"{where} has the keys {list(value)!r}: give strings.")
        return {name: _canonical(value[name], f"{where}.{name}") for name in sorted(value)}
    raise InputError(f"{where}={value!r}: give a JSON value with finite numbers.")


def _dump(side: Mapping[str, Any], name: str) -> str | None:
    return json.dumps(side[name], sort_keys=True) if name in side else None


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"
