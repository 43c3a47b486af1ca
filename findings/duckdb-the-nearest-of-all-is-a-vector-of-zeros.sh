#!/usr/bin/env bash
# Guess:    in DuckDB the cosine of a vector of zeros (an empty text, a page without words) is NULL or 0, and such a row
#           stands behind the real matches in `ORDER BY array_cosine_similarity(v, q) DESC`.
# Seen:     with duckdb 2.0.1 it is NaN, NaN is greater than every number, and so the vector of zeros is the first
#           match of every query; max_by returns it too. array_cosine_distance in ascending order has it last.
# Hence:    order by the distance, or keep such rows out: WHERE NOT isnan(...).
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.1
cd "$work"
cat > seen.py <<'PY'
import duckdb

db = duckdb.connect()
db.execute("CREATE TABLE pages (name VARCHAR, v FLOAT[3])")
rows = {"the same": [1, 0, 0], "near": [0.9, 0.1, 0], "empty": [0, 0, 0], "far": [-1, 0, 0]}
db.executemany("INSERT INTO pages VALUES (?, ?)", [[name, vector] for name, vector in rows.items()])
query = "[1, 0, 0]::FLOAT[3]"
near = db.sql(f"SELECT name, array_cosine_similarity(v, {query}) AS s FROM pages ORDER BY s DESC").fetchall()
best = db.sql(f"SELECT max_by(name, array_cosine_similarity(v, {query})) FROM pages").fetchall()
distance = db.sql(f"SELECT name FROM pages ORDER BY array_cosine_distance(v, {query})").fetchall()
print(near, best, distance)
raise SystemExit(0 if near[0][0] == "empty" and best == [("empty",)] and distance[0] == ("the same",) else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "duckdb behaves otherwise now." >&2; exit 1; }
