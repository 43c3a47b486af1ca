#!/usr/bin/env bash
# Guess:    `usearch.index.Index(ndim, metric="cos")` keeps float32 vectors as they are, and search(exact=True) gives the
#           true nearest neighbours.
# Seen:     with usearch 2.26.6 it keeps them in bfloat16 unless a dtype is named (on CPUs that have it), and "exact"
#           means exact over the rounded ones. Vectors of language models lie in a narrow cone: at a mean cosine of .99
#           the exact search gives 96% of the true ten, with dtype="f32" all of them.
# Hence:    name the dtype; take away the mean of a corpus before anything is rounded.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
cd "$work"
cat > seen.py <<'PY'
import numpy as np
from usearch.index import Index

numbers = np.random.default_rng(0)


def cone(rows, centre=10):
    vectors = numbers.normal(size=(rows, 64)) + centre
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


documents, queries = cone(2000), cone(50)
true = np.argsort(-(queries.astype(float) @ documents.T.astype(float)), axis=1)[:, :10]
recall, kinds = {}, {}
for dtype in (None, "f32"):
    index = Index(ndim=64, metric="cos", dtype=dtype)
    index.add(np.arange(len(documents)), documents)
    found = index.search(queries, 10, exact=True).keys
    recall[dtype] = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true)]))
    kinds[dtype] = str(index.dtype)
print(kinds, recall)
raise SystemExit(0 if recall["f32"] > 0.995 and recall[None] < 0.98 and "32" not in kinds[None] else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "usearch behaves otherwise now." >&2; exit 1; }
