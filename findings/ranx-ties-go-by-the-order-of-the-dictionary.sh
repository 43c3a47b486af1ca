#!/usr/bin/env bash
# Guess:    what `ranx.evaluate` says of a run does not depend on the order in which the run's dictionary was filled.
# Seen:     with ranx 0.3.21 documents of one score stay in that order: the same two scores give a reciprocal rank of 1
#           or of .5. trec_eval orders ties by the document's id, backwards, and gives .5 for both.
# Hence:    break ties before a run is scored. A retriever that lists equal scores in the corpus's order, as filters,
#           BM25 over short texts and binary vectors do, is measured by that order too.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check ranx==0.3.21 pytrec_eval-terrier==0.5.11
cd "$work"
cat > seen.py <<'PY'
import pytrec_eval
from ranx import Qrels, Run, evaluate

judged = {"query": {"a": 1}}
runs = [{"query": {"a": 0.5, "b": 0.5}}, {"query": {"b": 0.5, "a": 0.5}}]
ranx = [float(evaluate(Qrels(judged), Run(run), "mrr")) for run in runs]
trec = [pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(run)["query"]["recip_rank"] for run in runs]
print("ranx", ranx, "trec_eval", trec)
raise SystemExit(0 if ranx == [1.0, 0.5] and trec == [0.5, 0.5] else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "ranx behaves otherwise now." >&2; exit 1; }
