"""Advice in messages: what to do about an error, in the words of whoever met it, a command or Python.

The same reader serves commands with different options. A message must name an option only where it can be given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["advise", "command_options"]

_options: ContextVar[Collection[str] | None] = ContextVar("options", default=None)

_Way = str | tuple[str, str, str]


def advise(*ways: _Way) -> str:
    """Say what can be done.

    Args:
        *ways: What is always possible, as it is said; or a sentence with {}, the option of the command line that does
            it, and what to write in Python. A command without the option is not told of it.

    Returns:
        The ways with "or" between them, as a sentence.

    Example:
        >>> blank = "remove such rows", ("embed them as zeros ({})", "--allow-empty", "allow_empty=True")
        >>> advise(*blank)
        'Remove such rows, or embed them as zeros (allow_empty=True).'
        >>> with command_options(["--allow-empty"]):
        ...     advise(*blank)
        'Remove such rows, or embed them as zeros (--allow-empty).'
        >>> with command_options(["--json"]):
        ...     advise(*blank)
        'Remove such rows.'
    """
    options, said = _options.get(), list[str]()
    for way in ways:
        if isinstance(way, str):
            said.append(way)
            continue
        sentence, option, python = way
        if options is None:
            said.append(sentence.format(python))
        elif option.split()[0] in options:
            said.append(sentence.format(option))
    sentence = ", or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
    return f"{sentence[:1].upper()}{sentence[1:]}."


@contextmanager
def command_options(options: Collection[str]) -> Iterator[None]:
    """Speak to a command while a block runs.

    Args:
        options: Its options, such as "--json".
    """
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)
