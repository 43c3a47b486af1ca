"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "CacheOption",
    "DeviceOption",
    "EngineOption",
    "EngineOptionsOption",
    "IndexFolder",
    "JsonOption",
    "MaxNewTokensOption",
    "ModelOption",
    "Role",
    "RoleOption",
]


class Role(str, Enum):
    """What a text is in retrieval: it decides which prompt the model is shown."""

    query = "query"
    document = "document"


ModelOption = Annotated[
    str, typer.Option("--model", help="Bundled model, model folder or hub name.", metavar="NAME|FOLDER")
]
RoleOption = Annotated[Role, typer.Option("--role", help="What the texts are: decides the prompt.")]
CacheOption = Annotated[
    str, typer.Option("--cache", help="Where rationales are kept: default, a file or folder, or none.", metavar="PATH")
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=0, help="Most tokens of a rationale.", show_default="the model's setting"),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Such as cpu or cuda:0.", show_default="the best there is")
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
IndexFolder = typer.Option("--index", help="An index: a folder that `grace index build` made.", metavar="FOLDER")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
