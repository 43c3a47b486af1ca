"""An index as LlamaIndex's vector store. It holds the texts, and embeds queries itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from grace_retrieval.errors import InputError
from grace_retrieval.indexing.filters import Combination, Comparison, Operator
from grace_retrieval.indexing.hits import Hit

if TYPE_CHECKING:
    from grace_retrieval.indexing.searchable import Searchable

__all__ = ["GraceVectorStore"]

_READ_ONLY = "An opened index is read-only: change it with `grace index add`, `grace index delete` or build_index()."
_OURS = ("title", "rationale")
_OPERATORS: dict[FilterOperator, Operator] = {
    FilterOperator.EQ: "==",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "not in",
    FilterOperator.CONTAINS: "contains",
}


class GraceVectorStore(BasePydanticVectorStore):
    """Searches an index. `VectorStoreIndex.from_vector_store(store, embed_model=...)` takes it.

    Queries are embedded by the index's own embedder, with its prompt for queries, whatever the embed model is. In mode
    "hybrid" they are fused with BM25. Nodes carry the metadata of the index, and `title` and `rationale`, which are
    kept from language models and embedders; where the corpus has a column of such a name, ours is `grace_title` or
    `grace_rationale`.

    Args:
        index: An opened index.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    _index: Any = PrivateAttr()

    def __init__(self, index: Searchable) -> None:
        super().__init__(stores_text=True)
        self._index = index

    @classmethod
    def class_name(cls) -> str:
        """Name of the class."""
        return "GraceVectorStore"

    @property
    def client(self) -> Searchable:
        """The index."""
        index: Searchable = self._index
        return index

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes.

        Args:
            query: A query string, or an embedding of the index's own embedder.
            **kwargs: None.

        Raises:
            InputError: If the query has neither, asks for another mode than default and hybrid, or for a filter that
                is not known, that compares a number with text, or that names metadata which no document has.
        """
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID):
            raise InputError(f"mode={query.mode.value!r}: an index is searched in the modes 'default' and 'hybrid'.")
        hybrid = query.mode == VectorStoreQueryMode.HYBRID
        wanted = _filter(query)
        if query.query_str is not None:
            found = self._index.search(query.query_str, query.similarity_top_k, filter=wanted, hybrid=hybrid)
        elif query.query_embedding is not None:
            (found,) = self._index.search_vectors([query.query_embedding], query.similarity_top_k, filter=wanted)
        else:
            raise InputError("The query has neither a string nor an embedding.")
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in found.hits],
            similarities=[hit.score for hit in found.hits],
            ids=[hit.id for hit in found.hits],
        )

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Refused: an opened index is read-only.

        Raises:
            InputError: Always.
        """
        raise InputError(_READ_ONLY)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Refused: an opened index is read-only.

        Raises:
            InputError: Always.
        """
        raise InputError(_READ_ONLY)


def _node(hit: Hit) -> TextNode:
    ours = hit.beside_metadata(_OURS)
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata={**ours, **hit.metadata},
        excluded_embed_metadata_keys=list(ours),
        excluded_llm_metadata_keys=list(ours),
    )


def _filter(query: VectorStoreQuery) -> Combination | None:
    """LlamaIndex's filters as those of an index; None without any."""
    if query.node_ids or query.doc_ids:
        raise InputError("node_ids and doc_ids are not known to an index: filter by metadata.")
    return None if query.filters is None else _combined(query.filters)


def _combined(filters: MetadataFilters) -> Combination:
    parts = tuple(
        _combined(part) if isinstance(part, MetadataFilters) else _comparison(part) for part in filters.filters
    )
    hows = {FilterCondition.OR: "any", FilterCondition.NOT: "none"}
    return Combination(parts, cast("Any", hows.get(cast("Any", filters.condition), "all")))


def _comparison(part: MetadataFilter) -> Comparison:
    if part.operator not in _OPERATORS:
        known = ", ".join(operator.value for operator in _OPERATORS)
        raise InputError(f"The filter operator {part.operator.value!r} is not known here: give one of {known}.")
    return Comparison(part.key, _OPERATORS[part.operator], part.value)
