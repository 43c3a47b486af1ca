"""RationalePostprocessor: shows what the model wrote about each node that was found."""

from __future__ import annotations

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from grace_retrieval.corpus.document import key_beside
from llama_index.embeddings.grace.base import GraceEmbedding

__all__ = ["RationalePostprocessor"]

KEY = "rationale"


class RationalePostprocessor(BaseNodePostprocessor):
    """Attaches rationales to nodes, from the cache, without another model call.

    `node.metadata["rationale"]` is what the model wrote when it embedded the node, or None if the cache no longer has
    it. The key is excluded from what is embedded and from what a language model is shown. Where a node has a
    "rationale" of its own, ours is "grace_rationale".

    Args:
        embed_model: The GraceEmbedding that the nodes were embedded with.
    """

    embed_model: GraceEmbedding

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised settings."""
        return "GraceRationalePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        written = self.embed_model.rationale_texts([node.get_content(MetadataMode.EMBED) for node in nodes])
        return [_with_rationale(node, rationale) for node, rationale in zip(nodes, written, strict=True)]


def _with_rationale(found: NodeWithScore, rationale: str | None) -> NodeWithScore:
    """A copy, because the node of a docstore in memory is the stored one."""
    node = found.node.model_copy()
    key = key_beside(node.metadata, KEY)
    node.metadata = {**node.metadata, key: rationale}
    node.excluded_embed_metadata_keys = sorted({*node.excluded_embed_metadata_keys, key})
    node.excluded_llm_metadata_keys = sorted({*node.excluded_llm_metadata_keys, key})
    return NodeWithScore(node=node, score=found.score)
