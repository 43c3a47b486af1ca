#!/usr/bin/env bash
# Guess:    fuse(runs, norm="min-max", method="sum") of ranx, with its defaults for both: a document that one system
#           alone found, and nothing else, gets that system's whole vote.
# Seen:     with ranx 0.3.21 the lowest score of a run becomes 0, and with one document the highest is the lowest: the
#           only hit of the first system, found by the second as well, is fused to 0 and stands behind the other one.
#           With norm="max" it is first.
# Hence:    where a system may find one document (a filter, an exact match), normalise by the maximum, or fuse by rank.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check ranx==0.3.21
cd "$work"
cat > seen.py <<'PY'
from ranx import Run, fuse

exact, vectors = {"query": {"the very page": 3.0}}, {"query": {"another": 2.0, "the very page": 1.0}}
fused = {
    norm: fuse([Run(exact), Run(vectors)], norm=norm, method="sum").to_dict()["query"] for norm in ("min-max", "max")
}
print(fused)
first = {norm: max(scores, key=scores.get) for norm, scores in fused.items()}
raise SystemExit(0 if first == {"min-max": "another", "max": "the very page"} else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "ranx behaves otherwise now." >&2; exit 1; }
