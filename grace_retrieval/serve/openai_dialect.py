"""OpenAI's dialect: POST /v1/embeddings, GET /v1/models."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.serve.errors import RequestError
from grace_retrieval.serve.fields import Fields, check_count
from grace_retrieval.serve.roles import ROLES, model_names, read_role
from grace_retrieval.serve.service import EmbeddingService

__all__ = ["embeddings", "list_models", "model_card", "shorten"]

FIELDS = (
    "input",
    "model",
    "encoding_format",
    "dimensions",
    "user",
    "input_type",
    "tokenizer",
    "truncate",
    "rationale",
)


async def embeddings(service: EmbeddingService, body: Any) -> dict[str, Any]:
    """POST /v1/embeddings.

    Args:
        service: What embeds.
        body: `input` (a string, strings, token ids or lists of them), `model`, `encoding_format`, `dimensions`, and of
            our own `input_type` ("query" or "document"), `tokenizer`, `truncate` and `rationale`.

    Returns:
        OpenAI's answer. `usage.prompt_tokens` counts the texts' tokens, `total_tokens` those of rationales too.

    Raises:
        RequestError: If the body cannot be used.
    """
    fields = Fields(body, FIELDS)
    role = read_role(fields.get("model"), fields.choice("input_type", ROLES), service.name)
    encoding = fields.choice("encoding_format", ("float", "base64")) or "float"
    width = service.dimension
    dimensions = fields.whole("dimensions", width, "the model's vectors have so many") or width
    truncate, rationale = fields.flag("truncate"), fields.mode("rationale")
    texts = _read_input(service, fields)
    found = await service.embed(texts, role, param="input", rationale=rationale, truncate=truncate)
    vectors = shorten(np.stack([one.vector for one in found]), dimensions)
    tokens = sum(one.tokens for one in found)
    return {
        "object": "list",
        "model": f"{service.name}:{role}",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_encoded(vectors, encoding))
        ],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens + sum(len(one.rationale.token_ids) for one in found),
        },
    }


def shorten(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The first dimensions of vectors, at length 1 again, as `encode(truncate_dim=…)` gives them.

    Args:
        vectors: Shape: (texts, dim), float32.
        dimensions: How many to keep.

    Returns:
        Shape: (texts, dimensions), float32.
    """
    if dimensions == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    shortened: npt.NDArray[np.float32] = np.divide(kept, lengths, out=np.zeros_like(kept), where=lengths > 0)
    return shortened


def _encoded(vectors: npt.NDArray[np.float32], encoding: str) -> Sequence[Any]:
    if encoding == "float":
        return list(vectors.tolist())
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]


def _read_input(service: EmbeddingService, fields: Fields) -> list[str]:
    """Texts of `input`; token ids are decoded where the request says that they are ours."""
    value, most = fields.get("input"), service.options.max_texts
    if not isinstance(value, list) or not value or not isinstance(value[0], (int, list)):
        return fields.texts("input", most, "--max-texts")
    lists: list[Any] = [value] if isinstance(value[0], int) else value
    check_count("input", len(lists), most, "--max-texts")
    for place, ids in enumerate(lists):
        if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise RequestError(f"input[{place}] is no list of token ids: give strings.", param="input")
    names = (service.name, *model_names(service.name))
    if (tokenizer := fields.get("tokenizer")) not in names:
        given = "The request names no tokenizer" if tokenizer is None else f"tokenizer={repr(tokenizer)[:60]}"
        raise RequestError(
            f"input holds token ids of a tokenizer that this server cannot know. {given}. Send strings: "
            "langchain-openai does with OpenAIEmbeddings(check_embedding_ctx_length=False). If the ids are of this "
            f"model's own tokenizer, send tokenizer={service.name!r} along.",
            param="input",
        )
    return [service.decode_tokens(ids) for ids in lists]


def list_models(service: EmbeddingService) -> dict[str, Any]:
    """GET /v1/models: the model, and its name with either role."""
    return {"object": "list", "data": [model_card(service, name) for name in model_names(service.name)]}


def model_card(service: EmbeddingService, name: str) -> dict[str, Any]:
    """GET /v1/models/{name}.

    Raises:
        RequestError: If it is not served.
    """
    read_role(name, None, service.name)
    return {"id": name, "object": "model", "created": 0, "owned_by": "grace-retrieval"}
