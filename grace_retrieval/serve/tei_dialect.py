"""The dialect of Text Embeddings Inference: POST /embed (and /), GET /info, and its other routes refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from grace_retrieval import __version__
from grace_retrieval.serve.errors import UNSUPPORTED, RequestError
from grace_retrieval.serve.fields import Fields
from grace_retrieval.serve.openai_dialect import shorten
from grace_retrieval.serve.roles import DEFAULT_ROLE, ROLES
from grace_retrieval.serve.service import EmbeddingService

__all__ = ["REFUSED", "embed", "info", "refuse"]

FIELDS = ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions", "encoding_format")

REFUSED = {
    "/embed_all": "gives the states of all tokens, and this server gives one vector a text: use /embed",
    "/embed_sparse": "gives sparse vectors, and this model makes dense ones: use /embed",
    "/predict": "classifies, and this model embeds: use /embed",
    "/rerank": "is for cross-encoders, and this model embeds: use /search, or /explain for scores of texts",
}
"""Routes of TEI that are not served, and why."""


async def embed(service: EmbeddingService, body: Any) -> list[list[float]]:
    """POST /embed.

    Args:
        service: What embeds.
        body: `inputs` (a string or strings), `normalize`, `truncate`, `truncation_direction` ("right"), `prompt_name`
            ("query" or "document"), `dimensions`.

    Returns:
        One vector a text.

    Raises:
        RequestError: If the body cannot be used.
    """
    fields = Fields(body, FIELDS)
    role = next((role for role in ROLES if role == fields.choice("prompt_name", ROLES)), DEFAULT_ROLE)
    direction = fields.get("truncation_direction")
    if direction is not None and str(direction).lower() != "right":
        raise RequestError(
            f"truncation_direction={str(direction)[:40]!r}: texts are shortened at their end only; give 'right'.",
            param="truncation_direction",
        )
    fields.choice("encoding_format", ("float",))
    width = service.dimension
    normalize = fields.flag("normalize") is not False
    dimensions = fields.whole("dimensions", width, "the model's vectors have so many") or width
    # The dialect's own default: a text that is too long is an error.
    truncate = fields.flag("truncate")
    texts = fields.texts("inputs", service.options.max_texts, "--max-texts")
    found = await service.embed(texts, role, param="inputs", truncate=truncate)
    if normalize:
        return list(shorten(np.stack([one.vector for one in found]), dimensions).tolist())
    if len(service.embedder) > 3:
        raise RequestError(
            "normalize=false: this model has more behind its pooling than normalisation; leave normalize out.",
            param="normalize",
        )
    return list(np.stack([one.pooled for one in found])[:, :dimensions].tolist())


def refuse(path: str) -> RequestError:
    """The error of a route that is not served."""
    return RequestError(f"{path} {REFUSED[path]}.", UNSUPPORTED)


def info(service: EmbeddingService) -> dict[str, Any]:
    """GET /info: TEI's fields, and what this server has beside (`dimension`, `roles`, `rationale`, `index`)."""
    options, pipeline = service.options, service.embedder.pipeline
    index = service.index
    return {
        "model_id": service.name,
        "model_sha": service.identity,
        "model_dtype": pipeline.policy.dtype,
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": options.max_queue,
        "max_input_length": service.max_text_tokens,
        "max_batch_tokens": options.max_tokens,
        "max_batch_requests": options.max_batch,
        "max_client_batch_size": options.max_texts,
        "auto_truncate": options.truncate,
        "tokenization_workers": 1,
        "version": __version__,
        "prompts": list(ROLES),
        "dimension": service.dimension,
        "rationale": service.rationale,
        "index": None if index is None else {"documents": len(index), **service.index_facts},
    }
