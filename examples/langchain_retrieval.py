"""A LangChain retrieval chain that shows why each passage was embedded where it was.

    python examples/langchain_retrieval.py [PASSAGES.jsonl] [QUERY ...]

Runs offline once the policy of grace-small was fetched. Each line of a file of passages is an object with "text" and,
if you like, "title".
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_grace import GraceEmbeddings, GraceRetriever

QUERIES = ["how does yeast make bread rise", "why are there two high tides a day"]


def read_passages(path: str | None) -> list[Document]:
    """Passages of a file, or the 28 that ship with the package."""
    source = Path(path) if path else files("grace_retrieval") / "data" / "demo.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    return [
        Document(page_content="\n\n".join(filter(None, (row.get("title"), row["text"]))), metadata={"number": n})
        for n, row in enumerate(rows)
    ]


def show(found: list[Document]) -> str:
    """Passages with their rationales."""
    lines = []
    for place, document in enumerate(found, start=1):
        lines.append(f"{place}. {document.page_content.splitlines()[0][:90]}")
        lines.append(f"   written by the model: {document.metadata['rationale']}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Store passages, then ask."""
    path = arguments.pop(0) if arguments and arguments[0].endswith(".jsonl") else None
    store = InMemoryVectorStore(GraceEmbeddings(model="grace-small"))  # the one line to change
    store.add_documents(read_passages(path))
    retriever = GraceRetriever(vectorstore=store, rationales=True, search_kwargs={"k": 3})
    chain = retriever | RunnableLambda(show)
    for query in arguments or QUERIES:
        print(f"Query: {query}\n{chain.invoke(query)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
