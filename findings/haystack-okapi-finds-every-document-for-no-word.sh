#!/usr/bin/env bash
# Guess:    Haystack's in-memory BM25 finds nothing for a query none of whose words is in a document, whatever the formula.
# Seen:     with haystack-ai 3.4.0 that is so for BM25L (the default) and BM25Plus. With bm25_algorithm="BM25Okapi" all
#           documents come back with a score of 0, up to top_k, and fill up the list behind those that match.
# Hence:    drop what has a score of 0 before hits are fused or given to a language model, or keep the default.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check haystack-ai==3.4.0
cd "$work"
cat > seen.py <<'PY'
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore

TEXTS = ("the cat sat", "the dog ran", "a bird flew")


def found(formula, query):
    store = InMemoryDocumentStore(bm25_algorithm=formula)
    store.write_documents([Document(content=text) for text in TEXTS])
    return [(hit.content, round(hit.score, 3)) for hit in store.bm25_retrieval(query, top_k=3)]


unknown = {formula: found(formula, "zebra") for formula in ("BM25L", "BM25Plus", "BM25Okapi")}
known = found("BM25Okapi", "cat")
print(unknown, known)
others = not unknown["BM25L"] and not unknown["BM25Plus"]
okapi = [score for _, score in unknown["BM25Okapi"]] == [0.0] * 3
raise SystemExit(0 if others and okapi and len(known) == 3 and known[0][0] == "the cat sat" and known[1][1] == 0 else 1)
PY
HAYSTACK_TELEMETRY_ENABLED=False "$work/venv/bin/python" seen.py 2> "$work/log" || {
  cat "$work/log" >&2
  echo "Haystack behaves otherwise now." >&2
  exit 1
}
