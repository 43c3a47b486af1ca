"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from grace_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from grace_retrieval.indexing.runners import Runner as ShardRunner
    from grace_retrieval.rationale import RationaleMode

__all__ = [
    "CacheOption",
    "DeviceOption",
    "EchoOption",
    "EngineOption",
    "EngineOptionsOption",
    "Format",
    "GpusOption",
    "IndexFolder",
    "IndexModelOption",
    "JsonOption",
    "MaxNewTokensOption",
    "ModelOption",
    "NoRationaleOption",
    "RayAddressOption",
    "Role",
    "RoleOption",
    "Runner",
    "RunnerOption",
    "WorkersOption",
    "chosen_mode",
    "parse_bytes",
    "shard_runner",
]


class Format(str, Enum):
    """Formats of an input."""

    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"
    text = "text"
    trec_topics = "trec-topics"
    datasets = "datasets"


class Runner(str, Enum):
    """Where shards are made."""

    local = "local"
    ray = "ray"


class Role(str, Enum):
    """What a text is in retrieval: it decides which prompt the model is shown."""

    query = "query"
    document = "document"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="GRACE_MODEL",
        help="Bundled or fetched model, folder, GGUF file, hub name.",
        metavar="NAME|FOLDER",
    ),
]
RoleOption = Annotated[Role, typer.Option("--role", help="What the texts are: decides the prompt.")]
CacheOption = Annotated[
    str, typer.Option("--cache", help="Where rationales are kept: default, a file or folder, or none.", metavar="PATH")
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=0, help="Most tokens of a rationale.", show_default="the model's setting"),
]
MaxSentencesOption = Annotated[
    int | None,
    typer.Option(
        "--max-sentences",
        min=0,
        help="Most sentences of a rationale, reasoning aside; 0 for any.",
        show_default="the model's setting",
    ),
]
NoRationaleOption = Annotated[bool, typer.Option("--no-rationale", help="Embed the texts alone, without generating.")]
EchoOption = Annotated[bool, typer.Option("--echo", help="Embed each text twice, instead of writing about it.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", envvar="GRACE_DEVICE", help="Such as cpu or cuda:0.", show_default="the best there is"),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine", help="What runs the model: transformers, vllm, or an engine of another package.", metavar="NAME"
    ),
]
EngineOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        help="Option of the engine, such as max_model_len=2048; may be repeated.",
        metavar="NAME=VALUE",
    ),
]
RunnerOption = Annotated[Runner, typer.Option("--runner", help="Where shards are made.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Actors of --runner ray.", show_default="2")
]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Cluster to join, such as auto.", show_default="a new local one")
]
GpusOption = Annotated[
    float | None, typer.Option("--gpus", min=0, help="GPUs of an actor of --runner ray.", show_default="0")
]
IndexFolder = typer.Option("--index", help="An index: a folder that `grace index build` made.", metavar="FOLDER")
IndexModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model of the index, where it is not where it was: folder or hub name.",
        metavar="NAME|FOLDER",
        show_default="the one it was built with",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def parse_bytes(text: str | None, option: str = "--memory") -> int | None:
    """Read a size such as 8GB or 500MB (powers of 1000; GiB and MiB: of 1024).

    Args:
        text: The size; None is none.
        option: Name of the option, for the message.

    Raises:
        InputError: If it is no size.
    """
    if text is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
    number = text.strip().rstrip("BbIiKkMmGgTt ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"{option} {text!r} is no size: give something like 8GB or 500MB.")
    return size


def shard_runner(
    kind: Runner, *, workers: int | None, gpus: float | None, address: str | None, cache: str
) -> ShardRunner:
    """What makes the shards of a job.

    Args:
        kind: Where they are made.
        workers: Actors of Ray; None is 2.
        gpus: GPUs of an actor; None is none.
        address: Address of Ray's cluster; None starts one.
        cache: What `--cache` named; each actor opens it.

    Raises:
        InputError: If options of Ray are given without it.
        MissingExtraError: If Ray is asked for and not installed.
    """
    from grace_retrieval.indexing.runners import RayRunner, run_local

    if kind is Runner.ray:
        if find_spec("ray") is None:  # importing it takes seconds, and comes when it is needed
            raise MissingExtraError("ray", "ray", "--runner ray")
        kept = None if cache.lower() == "none" else cache
        return RayRunner(workers=workers or 2, gpus=gpus or 0, cache=kept, address=address)
    of_ray = {"--workers": workers, "--gpus": gpus, "--ray-address": address}
    if given := [name for name, value in of_ray.items() if value is not None]:
        raise InputError(f"{' and '.join(given)} would do nothing: they go with --runner ray.")
    return run_local


def chosen_mode(no_rationale: bool, echo: bool) -> RationaleMode | None:
    """What `--no-rationale` and `--echo` say; None leaves it to the model.

    Raises:
        InputError: If both are given.
    """
    if no_rationale and echo:
        raise InputError("--no-rationale embeds the texts alone and --echo twice: give one of them.")
    return False if no_rationale else "echo" if echo else None
