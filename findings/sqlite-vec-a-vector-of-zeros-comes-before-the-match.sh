#!/usr/bin/env bash
# Guess:    a vector of zeros in a vec0 table with distance_metric=cosine is the last of the neighbours, or an error.
# Seen:     with sqlite-vec 0.1.9 its distance is NULL; with k=1 the right row is found, but with k=2 and k=3 the vector
#           of zeros stands first and takes the place of a real neighbour.
# Hence:    keep vectors of zeros out of the table; ORDER BY distance and LIMIT do not help, as NULL sorts first.
# Fails if this changes. (Through apsw, as Python's sqlite3 is often built without loading of extensions.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check sqlite-vec==0.1.9 apsw==3.54.1.0
cd "$work"
cat > seen.py <<'PY'
import json

import apsw
import sqlite_vec

db = apsw.Connection(":memory:")
db.enable_load_extension(True)
db.load_extension(sqlite_vec.loadable_path())
db.execute("CREATE VIRTUAL TABLE pages USING vec0(v float[3] distance_metric=cosine)")
for row, vector in {1: [1, 0, 0], 2: [0, 0, 0], 3: [0.9, 0.1, 0], 4: [-1, 0, 0]}.items():
    db.execute("INSERT INTO pages(rowid, v) VALUES (?, ?)", (row, json.dumps(vector)))
search = "SELECT rowid, distance FROM pages WHERE v MATCH '[1, 0, 0]' AND k = ? ORDER BY distance"
found = {k: list(db.execute(search, (k,))) for k in (1, 2, 3)}
print(found)
rows = {k: [row for row, _ in neighbours] for k, neighbours in found.items()}
raise SystemExit(0 if rows == {1: [1], 2: [2, 1], 3: [2, 1, 3]} and found[2][0][1] is None else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "sqlite-vec behaves otherwise now." >&2; exit 1; }
