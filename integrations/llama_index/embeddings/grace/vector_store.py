"""An index as LlamaIndex's vector store. It holds the texts, and embeds queries itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
from grace_retrieval.indexing.hits import Hit

if TYPE_CHECKING:
    from grace_retrieval.indexing.searchable import Searchable

__all__ = ["GraceVectorStore"]

_READ_ONLY = "An opened index is read-only: change it with `grace index add`, `grace index delete` or build_index()."
_UNSEEN = ("title", "rationale")


class GraceVectorStore(BasePydanticVectorStore):
    """Searches an index. `VectorStoreIndex.from_vector_store(store, embed_model=...)` takes it.

    Queries are embedded by the index's own embedder, with its prompt for queries, whatever the embed model is. In mode
    "hybrid" they are fused with BM25. Nodes carry the metadata of the index, and `title` and `rationale`, which are
    kept from language models and embedders.

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
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata={"title": hit.title, "rationale": hit.rationale.text, **hit.metadata},
        excluded_embed_metadata_keys=list(_UNSEEN),
        excluded_llm_metadata_keys=list(_UNSEEN),
    )


def _filter(query: VectorStoreQuery) -> Any:
    """LlamaIndex's filters as a function of metadata; None without any."""
    if query.node_ids or query.doc_ids:
        raise InputError("node_ids and doc_ids are not known to an index: filter by metadata.")
    return None if query.filters is None else _Named(_predicate(query.filters), _names(query.filters))


class _Named:
    """A function of metadata that says what it asks for, so that the index can say what no document has."""

    def __init__(self, allows: Callable[[dict[str, Any]], bool], names: set[str]) -> None:
        self._allows = allows
        self.names = names

    def __call__(self, metadata: dict[str, Any]) -> bool:
        return self._allows(metadata)


def _names(filters: MetadataFilters) -> set[str]:
    parts = [_names(part) if isinstance(part, MetadataFilters) else {part.key} for part in filters.filters]
    return set().union(*parts)


def _predicate(filters: MetadataFilters) -> Any:
    parts = [_predicate(part) if isinstance(part, MetadataFilters) else _comparison(part) for part in filters.filters]
    if filters.condition == FilterCondition.OR:
        return lambda metadata: any(part(metadata) for part in parts)
    if filters.condition == FilterCondition.NOT:
        return lambda metadata: not any(part(metadata) for part in parts)
    return lambda metadata: all(part(metadata) for part in parts)


def _comparison(part: MetadataFilter) -> Any:
    name = part.key
    wanted: Any = part.value
    tests: dict[FilterOperator, Any] = {
        FilterOperator.EQ: lambda value: value == wanted,
        FilterOperator.NE: lambda value: value != wanted,
        FilterOperator.GT: lambda value: value > wanted,
        FilterOperator.GTE: lambda value: value >= wanted,
        FilterOperator.LT: lambda value: value < wanted,
        FilterOperator.LTE: lambda value: value <= wanted,
        FilterOperator.IN: lambda value: value in wanted,
        FilterOperator.NIN: lambda value: value not in wanted,
        FilterOperator.CONTAINS: lambda value: wanted in value,
    }
    if part.operator not in tests:
        known = ", ".join(operator.value for operator in tests)
        raise InputError(f"The filter operator {part.operator.value!r} is not known here: give one of {known}.")
    test = tests[part.operator]

    def allows(metadata: dict[str, Any]) -> bool:
        value = metadata.get(name)
        try:
            return value is not None and bool(test(value))
        except TypeError as error:
            raise InputError(
                f"The filter {name} {part.operator.value} {wanted!r} cannot be compared with {name}={value!r}: one is "
                f"{type(wanted).__name__}, the other {type(value).__name__}. Columns of CSV files are text: give text, "
                "or index the column as numbers from JSON lines or parquet."
            ) from error

    return allows
