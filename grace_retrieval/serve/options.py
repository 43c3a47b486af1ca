"""ServeOptions: limits of a server, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grace_retrieval.errors import InputError

__all__ = ["ServeOptions"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Limits of a server, and what it tells.

    Args:
        name: Name of the model in requests; None is the model's own, without folders.
        api_keys: Keys of which each request must bring one; none lets everybody in.
        hosts: Names that a request may call the server by; None allows all. A server on loopback that answers to any
            name could be reached by a page in the browser whose own name was pointed here.
        max_queue: Most requests at a time; the next ones are refused with 429.
        max_queue_bytes: Most bytes of the bodies of these.
        max_body: Most bytes of a body.
        max_texts: Most texts of a request.
        max_tokens: Most tokens of the texts of a request.
        max_batch: Most texts of a call of the model; others wait for no more than one such call.
        max_explained: Most documents that a request has explained.
        max_hits: Most hits of a search.
        body_seconds: Most seconds for the head of a request to come, and for its body.
        answer_seconds: Most seconds for a client to take its answer.
        truncate: Whether texts that are too long are shortened unless a request says otherwise; False refuses them.
        log_texts: Whether log lines show the first text of a request.

    Raises:
        InputError: If a limit is not positive.
    """

    name: str | None = None
    api_keys: Sequence[str] = ()
    hosts: Sequence[str] | None = None
    max_queue: int = 1024
    max_queue_bytes: int = 256 << 20
    max_body: int = 8 << 20
    max_texts: int = 2048
    max_tokens: int = 300_000
    max_batch: int = 128
    max_explained: int = 50
    max_hits: int = 100
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    truncate: bool = False
    log_texts: bool = False

    def __post_init__(self) -> None:
        for name in (field for field in self.__dataclass_fields__ if field.startswith("max_") or "seconds" in field):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise InputError(f"{name}={value!r}: give a positive number.")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise InputError(
                "A key holds a blank or a character that a header cannot: give keys of letters and digits."
            )
        if self.max_body > self.max_queue_bytes:
            raise InputError(
                f"max_body={self.max_body} is more than max_queue_bytes={self.max_queue_bytes}: no such body would "
                "ever be let in. Lower the first, or raise the second."
            )
