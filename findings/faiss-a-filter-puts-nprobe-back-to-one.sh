#!/usr/bin/env bash
# Guess:    an IVF index with nprobe=64, searched with params=SearchParametersIVF(sel=...), searches 64 lists among the
#           selected vectors. (The same for efSearch of HNSW.)
# Seen:     with faiss-cpu 1.15.1 the parameters replace those of the index, and have nprobe=1 and efSearch=16 of their
#           own: a filter that lets everything through brings recall@10 from .97 to .12, and HNSW's from .94 to .42.
# Hence:    name them whenever a filter is given: SearchParametersIVF(sel=sel, nprobe=index.nprobe).
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
cd "$work"
cat > seen.py <<'PY'
import faiss
import numpy as np

numbers = np.random.default_rng(0)
documents = numbers.normal(size=(20_000, 32)).astype(np.float32)
queries = numbers.normal(size=(100, 32)).astype(np.float32)
exact = faiss.IndexFlatL2(32)
exact.add(documents)
true = exact.search(queries, 10)[1]


def recall(index, **options):
    found = index.search(queries, 10, **options)[1]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true)]))


ivf = faiss.index_factory(32, "IVF128,Flat")
ivf.train(documents)
ivf.add(documents)
ivf.nprobe = 64
graph = faiss.IndexHNSWFlat(32, 8)
graph.add(documents)
graph.hnsw.efSearch = 400
everything = faiss.IDSelectorAll()
seen = {
    "IVF": recall(ivf),
    "IVF, filtered": recall(ivf, params=faiss.SearchParametersIVF(sel=everything)),
    "IVF, filtered, nprobe named": recall(ivf, params=faiss.SearchParametersIVF(sel=everything, nprobe=64)),
    "HNSW": recall(graph),
    "HNSW, filtered": recall(graph, params=faiss.SearchParametersHNSW(sel=everything)),
}
print(seen)
kept = seen["IVF"] == seen["IVF, filtered, nprobe named"]
lost = seen["IVF, filtered"] < seen["IVF"] / 2 and seen["HNSW, filtered"] < 0.7 * seen["HNSW"]
raise SystemExit(0 if kept and lost else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "faiss behaves otherwise now." >&2; exit 1; }
