"""`grace rationale`: what a model writes about one text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cli.console import print_indented, print_json, result_console, status
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EngineOption,
    EngineOptionsOption,
    JsonOption,
    MaxNewTokensOption,
    MaxSentencesOption,
    ModelOption,
    Role,
    RoleOption,
)
from grace_retrieval.errors import InputError

__all__ = ["rationale"]


def rationale(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A text, or - for the standard input.")],
    role: RoleOption = Role.query,
    model: ModelOption = DEFAULT_MODEL,
    max_new_tokens: MaxNewTokensOption = None,
    max_sentences: MaxSentencesOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a model writes about a text before it embeds it."""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"The standard input is not UTF-8 ({error.reason}): convert it.") from error
        # The end that echo puts there.
        text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise InputError("The text is blank: there is nothing to write about. Give some words.")

    from grace_retrieval.cli.loading import load_embedder, open_command_cache

    opened = open_command_cache(cache)
    embedder = load_embedder(
        model,
        cache=opened,
        device=device,
        max_new_tokens=max_new_tokens,
        max_sentences=max_sentences,
        engine=engine,
        engine_options=engine_option,
    )
    with status("Writing ..."):
        (found,) = embedder.rationales(text, role.value)
    opened.close()
    if json:
        print_json(
            {
                "written_by": model,
                "role": role.value,
                "text": text,
                "rationale": found.text,
                "reasoning": found.reasoning,
                "summary": found.summary,
                "truncated": found.truncated,
                "repeats": found.repeats,
                "text_truncated": found.text_truncated,
            }
        )
        return
    console = result_console()
    console.print(Text(f"Written by the model {model}. It may be wrong.", style="dim"))
    for name, part in found.parts.items():
        console.print(Text(name.capitalize(), style="bold"))
        print_indented(console, Text(part or "(none)", style="" if part else "dim"), 2)
    if found.circled:
        console.print(Text("Cut off where it began to repeat itself, as small policies do.", style="dim"))
    elif found.repeats:
        console.print(Text("It repeats itself, as small policies do.", style="dim"))
    if found.truncated and not found.circled:
        limit = embedder.pipeline.options.max_new_tokens
        console.print(Text(f"Cut off after {limit} tokens; --max-new-tokens sets the limit.", style="dim"))
