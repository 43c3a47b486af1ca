"""A LlamaIndex query pipeline: ingest with a cache, index in FAISS, retrieve passages with rationales.

    python examples/llama_index_query.py [PASSAGES.jsonl] [QUERY ...]

Runs offline once the policy of grace-small was fetched. Each line of a file of passages is an object with "text" and,
if you like, "title".
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import faiss
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document
from llama_index.vector_stores.faiss import FaissVectorStore

from llama_index.embeddings.grace import GraceEmbedding, RationalePostprocessor

QUERIES = ["how does yeast make bread rise", "why are there two high tides a day"]


def read_passages(path: str | None) -> list[Document]:
    """Passages of a file, or the 28 that ship with the package."""
    source = Path(path) if path else files("grace_retrieval") / "data" / "demo.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    return [Document(text="\n\n".join(filter(None, (row.get("title"), row["text"])))) for row in rows]


def main(arguments: list[str]) -> None:
    """Ingest passages, then ask."""
    path = arguments.pop(0) if arguments and arguments[0].endswith(".jsonl") else None
    embed_model = GraceEmbedding(model_name="grace-small")  # the one line to change
    splitter = SentenceSplitter(chunk_size=512, chunk_overlap=0)
    nodes = IngestionPipeline(transformations=[splitter, embed_model]).run(documents=read_passages(path))

    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(embed_model.vector_identity().dimension))
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=storage, embed_model=embed_model)

    retriever = index.as_retriever(similarity_top_k=3)
    explain = RationalePostprocessor(embed_model=embed_model)
    for query in arguments or QUERIES:
        print(f"Query: {query}")
        for place, found in enumerate(explain.postprocess_nodes(retriever.retrieve(query)), start=1):
            print(f"{place}. {found.score:.3f} {found.node.get_content().splitlines()[0][:90]}")
            print(f"   written by the model: {found.node.metadata['rationale']}")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
