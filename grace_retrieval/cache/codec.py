"""Rows as bytes: little-endian arrays, UTF-8 text and one checksum over everything that belongs to a row."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import numpy as np

from grace_retrieval.cache.records import CachedRationale
from grace_retrieval.errors import InputError
from grace_retrieval.fingerprint import DIGEST_BYTES, check_digests, pack_ids

__all__ = ["DIGEST_BYTES", "DamagedRowError", "EncodedRow", "check_digests", "pack_ids"]

ROW_OVERHEAD = 160
"""Bytes a row costs besides its payload: key twice, checksum, times, record headers, index entries."""


class DamagedRowError(Exception):
    """A stored row is not what was written; stores turn this into CacheCorruptedError."""


class EncodedRow(NamedTuple):
    """A row in the form in which it is stored.

    Attributes:
        finish_reason: As in `CachedRationale`.
        token_ids: Little-endian uint32.
        text: UTF-8; lone surrogates pass through as three bytes each.
        vector: Little-endian float32.
    """

    finish_reason: str
    token_ids: bytes
    text: bytes
    vector: bytes

    @property
    def size(self) -> int:
        """Bytes the row counts against `max_bytes`."""
        return ROW_OVERHEAD + len(self.token_ids) + len(self.text) + len(self.vector)

    @classmethod
    def encode(cls, row: CachedRationale) -> EncodedRow:
        """Encode a row.

        Args:
            row: The row to store.

        Returns:
            Its bytes.

        Raises:
            InputError: The row is no `CachedRationale`, a token id does not fit, or the vector is not finite.
        """
        if not isinstance(row, CachedRationale):
            raise InputError(f"only CachedRationale rows can be stored, got {type(row).__name__}")
        if not np.isfinite(row.vector).all():
            raise InputError("a vector with NaN or infinity cannot be stored; every later hit would repeat it")
        return cls(
            row.finish_reason,
            pack_ids(row.token_ids),
            row.text.encode("utf-8", "surrogatepass"),
            row.vector.astype("<f4", copy=False).tobytes(),
        )

    def decode(self) -> CachedRationale:
        """Decode the row; the vector is a read-only view, so no caller can alter what others get."""
        vector = np.frombuffer(self.vector, dtype="<f4")
        return CachedRationale(
            token_ids=tuple(np.frombuffer(self.token_ids, dtype="<u4").tolist()),
            text=self.text.decode("utf-8", "surrogatepass"),
            finish_reason=self.finish_reason,  # type: ignore[arg-type]  # checked by CachedRationale
            vector=vector.astype(np.float32, copy=False),
        )

    def checksum(self, key: bytes, fingerprint: bytes, created: float) -> bytes:
        """Checksum over the row and what it belongs to, so that rows cannot change places either.

        Args:
            key: Row key.
            fingerprint: Digest of the fingerprint the row was made under.
            created: Unix seconds.

        Returns:
            16 bytes.
        """
        reason = self.finish_reason.encode("ascii")
        lengths = (len(key), len(fingerprint), len(reason), len(self.token_ids), len(self.text))
        head = struct.pack("<d5Q", created, *lengths)
        state = hashlib.blake2b(head + key + fingerprint + reason, digest_size=DIGEST_BYTES)
        state.update(self.token_ids)
        state.update(self.text)
        state.update(self.vector)
        return state.digest()

    def verified(self, key: bytes, fingerprint: bytes, created: float, checksum: bytes) -> CachedRationale:
        """Decode the row after comparing its checksum.

        Args:
            key: Row key.
            fingerprint: Digest of the fingerprint the row was made under.
            created: Unix seconds.
            checksum: The checksum stored with the row.

        Returns:
            The row.

        Raises:
            DamagedRowError: A part is missing, of the wrong type, or differs from what was written.
        """
        # Damage to a record's header changes the types that come back, hence the broad list.
        try:
            if self.checksum(key, fingerprint, created) == checksum:
                return self.decode()
        except (TypeError, ValueError, AttributeError, struct.error, InputError):
            pass
        raise DamagedRowError(f"row {_name(key)} is damaged")


def _name(key: object) -> str:
    # The key of a damaged row may be anything.
    return key.hex() if isinstance(key, bytes) else repr(key)
