"""`grace serve`: the embedder as a server. Found by the entry point `grace_retrieval.commands`."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grace_retrieval.bundled import DEFAULT_MODEL, chosen_model
from grace_retrieval.cli.console import error_console
from grace_retrieval.cli.logs import json_lines_wanted
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EchoOption,
    EngineOption,
    EngineOptionsOption,
    MaxNewTokensOption,
    MaxSentencesOption,
    NoRationaleOption,
    chosen_mode,
    parse_bytes,
)
from grace_retrieval.errors import InputError
from grace_retrieval.extras import require_extra
from grace_retrieval.serve.options import ServeOptions

if TYPE_CHECKING:
    from grace_retrieval.cache import RationaleCache
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.indexing import GraceIndex

__all__ = ["serve_app"]

KEY_VARIABLE = "GRACE_API_KEY"

serve_app = typer.Typer(
    help="Serve an embedder in the dialects of OpenAI and of Text Embeddings Inference, with searches and a page.",
    add_completion=False,
    rich_markup_mode="markdown",
)


@serve_app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Bundled model, model folder or hub name; with --index, where the index's own model is now.",
            metavar="NAME|FOLDER",
            show_default=f"the model of the index, GRACE_MODEL, or {DEFAULT_MODEL}",
        ),
    ] = None,
    index: Annotated[
        str | None, typer.Option("--index", help="An index to search: a folder of `grace index build`.", metavar="DIR")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What the model is called in requests.", show_default="its own, without folders"),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="Name that requests may call the server by; may be repeated.",
            show_default="names of loopback; all, if --host is no loopback address",
        ),
    ] = None,
    api_key: Annotated[
        Path | None,
        typer.Option(
            "--api-key", help=f"File of keys, one a line. One key can stand in ${KEY_VARIABLE}.", metavar="FILE"
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Most requests at a time; others get 429.")
    ] = 1024,
    max_queue_bytes: Annotated[str, typer.Option("--max-queue-bytes", help="Most bytes of their bodies.")] = "256MiB",
    max_body: Annotated[str, typer.Option("--max-body", help="Most bytes of a request.")] = "8MiB",
    max_texts: Annotated[int, typer.Option("--max-texts", min=1, help="Most texts of a request.")] = 2048,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of a request.")] = 300_000,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Most texts of a call of the model.")] = 128,
    max_explained: Annotated[
        int, typer.Option("--max-explained", min=1, help="Most documents that a request has explained.")
    ] = 50,
    max_hits: Annotated[int, typer.Option("--max-hits", min=1, help="Most hits of a search.")] = 100,
    body_seconds: Annotated[
        float, typer.Option("--body-seconds", min=0.1, help="Most seconds for a head to come, and for a body.")
    ] = 30,
    answer_seconds: Annotated[
        float, typer.Option("--answer-seconds", min=0.1, help="Most seconds for a client to take its answer.")
    ] = 60,
    stop_seconds: Annotated[
        int, typer.Option("--stop-seconds", min=0, help="Most seconds to finish what is there after SIGTERM.")
    ] = 60,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Shorten texts that are too long, unless a request says otherwise.")
    ] = False,
    no_rationale: NoRationaleOption = False,
    echo: EchoOption = False,
    max_new_tokens: MaxNewTokensOption = None,
    max_sentences: MaxSentencesOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Show the first text of a request in its log line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only.")] = False,
) -> None:
    """Serve an embedder in the dialects of OpenAI and of Text Embeddings Inference, with searches and a page."""
    for module, minimum in (("starlette", "1.0"), ("uvicorn", "0.34"), ("prometheus_client", "0.20")):
        require_extra(module, module.replace("_", "-"), minimum, extra="serve", purpose="grace serve")
    mode = chosen_mode(no_rationale, echo)
    keys = _read_keys(api_key)
    local = _is_loopback(host)
    options = ServeOptions(
        name=name,
        api_keys=keys,
        hosts=_hosts(host, allow_host, local=local),
        max_queue=max_queue,
        max_queue_bytes=parse_bytes(max_queue_bytes, "--max-queue-bytes") or 0,
        max_body=parse_bytes(max_body, "--max-body") or 0,
        max_texts=max_texts,
        max_tokens=max_tokens,
        max_batch=max_batch,
        max_explained=max_explained,
        max_hits=max_hits,
        body_seconds=body_seconds,
        answer_seconds=answer_seconds,
        truncate=truncate,
        log_texts=log_texts,
    )
    from grace_retrieval.cli.loading import open_command_cache
    from grace_retrieval.serve.running import open_socket, run_server
    from grace_retrieval.serve.service import EmbeddingService

    bound = open_socket(host, port)
    opened = open_command_cache(cache)
    try:
        embedder, found = _load(
            model,
            index,
            cache=opened,
            device=device,
            max_new_tokens=max_new_tokens,
            max_sentences=max_sentences,
            engine=engine,
            engine_options=engine_option,
        )
        if mode is not None:
            if found is not None and found.manifest.rationale != mode:
                given = "--echo" if echo else "--no-rationale"
                raise InputError(
                    f"{given}: the index was built otherwise. Leave it out: what it was built with is used."
                )
            embedder.pipeline.options.rationale = mode
        service = EmbeddingService(embedder, options, found)
        _log_to_stderr(quiet=quiet)
        at, number = bound.getsockname()[:2]
        address = f"http://{f'[{at}]' if ':' in at else at}:{number}"
        if not local and not keys:
            error_console().print(
                f"Warning: {host} can be reached from elsewhere, and there is no --api-key: everybody may use it.",
                style="yellow",
            )
        run_server(
            service,
            bound,
            stop_seconds=stop_seconds,
            ready=lambda: error_console().print(f"Serving {service.name} at {address}"),
        )
    finally:
        bound.close()
        opened.close()


def _load(
    model: str | None,
    index: str | None,
    *,
    cache: RationaleCache,
    device: str | None,
    max_new_tokens: int | None,
    max_sentences: int | None,
    engine: str,
    engine_options: list[str] | None,
) -> tuple[GraceEmbedder, GraceIndex | None]:
    """The embedder, and the index opened with it, as it was built."""
    from grace_retrieval.cli.loading import load_embedder, open_index

    if index is not None:
        if max_new_tokens is not None or max_sentences is not None or engine != "transformers" or engine_options:
            raise InputError(
                "--max-new-tokens, --max-sentences and --engine: an index is served with what it was built with. Leave "
                "them out."
            )
        found = open_index(index, model=model, cache=cache, device=device, on_truncation="ignore")
        return found.embedder, found
    embedder = load_embedder(
        chosen_model(model),
        cache=cache,
        device=device,
        max_new_tokens=max_new_tokens,
        max_sentences=max_sentences,
        on_truncation="ignore",
        engine=engine,
        engine_options=engine_options,
    )
    return embedder, None


def _read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of the file, and of the environment."""
    keys = [os.environ.get(KEY_VARIABLE, "").strip()]
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--api-key {str(path)!r} cannot be read ({error}): give a file with a key a line."
            ) from error
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise InputError(f"--api-key {str(path)!r} holds no key: write one a line, or leave the option out.")
        keys += lines
    return tuple(key for key in keys if key)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _hosts(host: str, allowed: list[str] | None, *, local: bool) -> tuple[str, ...] | None:
    """Names that requests may use; None for all. On loopback a page whose name points here must not get in."""
    if local:
        return tuple(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", host.lower(), *map(str.lower, allowed or [])]))
    return tuple(map(str.lower, allowed)) if allowed else None


def _log_to_stderr(*, quiet: bool) -> None:
    """A line a request, with its time; JSON lines where `grace --json-log` set these up."""
    logger, server = logging.getLogger("grace_retrieval.serve"), logging.getLogger("uvicorn.error")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    server.setLevel(logging.WARNING)
    if json_lines_wanted():
        for handler in logging.getLogger("grace_retrieval").handlers:
            server.addHandler(handler)
        return
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(own)
    logger.propagate = False  # or --verbose would write them once more, without a time
    server.addHandler(own)
