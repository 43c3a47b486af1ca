#!/usr/bin/env bash
# Guess:    pytrec_eval orders a run by the scores that it is given, which are Python's floats of eight bytes.
# Seen:     with pytrec_eval-terrier 0.5.11 two scores that differ from the ninth digit on are a tie, and ties are broken
#           by the document's id, backwards. A run ordered by time (seconds since 1970) is put into the order of its ids
#           within each two minutes; so are log-likelihoods of thousands, and cosines in a very narrow cone.
# Hence:    give ranks (1000, 999, ...) instead of scores to trec_eval and what is built on it.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check pytrec_eval-terrier==0.5.11 numpy==2.4.6
cd "$work"
cat > seen.py <<'PY'
import pytrec_eval

evaluator = pytrec_eval.RelevanceEvaluator({"query": {"a": 1, "b": 0}}, {"recip_rank"})


def rank_of_a(a, b):
    return 1 / evaluator.evaluate({"query": {"a": a, "b": b}})["query"]["recip_rank"]


found = {
    "a minute later": rank_of_a(1_790_000_060.0, 1_790_000_000.0),
    "an hour later": rank_of_a(1_790_003_600.0, 1_790_000_000.0),
    "likelier by .0001": rank_of_a(-2345.6780, -2345.6781),
    "nearer by 1e-9": rank_of_a(0.900000001, 0.900000000),
}
print("rank of a, which has the higher score:", found)
raise SystemExit(0 if list(found.values()) == [2, 1, 2, 2] else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "pytrec_eval behaves otherwise now." >&2; exit 1; }
