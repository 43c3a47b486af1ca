#!/usr/bin/env bash
# Guess:    BM25 by bm25s with its own tokenizer ranks "vitamin D ..." first for the query "vitamin D".
# Seen:     with bm25s 0.3.16 all three vitamins get the same score for each of the three queries: the default
#           token pattern keeps words of two characters and more, as scikit-learn's does.
# Hence:    for text in which single characters tell things apart (vitamins, types, grades, C and R) give
#           token_pattern=r"(?u)\b\w+\b", to documents and queries alike, and stop words for what apostrophes leave.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check bm25s==0.3.16 numpy==2.4.6
cd "$work"
cat > seen.py <<'PY'
import bm25s

documents = ["vitamin C keeps gums healthy", "vitamin D keeps bones healthy", "vitamin K lets blood clot"]


def scores(query, **options):
    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, show_progress=False, **options), show_progress=False)
    words = bm25s.tokenize([query], return_ids=False, show_progress=False, **options)[0]
    return [round(float(score), 3) for score in index.get_scores(words)] if words else words


found = {query: scores(query) for query in ("vitamin C", "vitamin D", "vitamin K")}
whole = scores("vitamin D", token_pattern=r"(?u)\b\w+\b")
print(found, "with single characters:", whole)
same = all(len(set(score)) == 1 for score in found.values())
raise SystemExit(0 if same and whole.index(max(whole)) == 1 and len(set(whole)) > 1 else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "bm25s behaves otherwise now." >&2; exit 1; }
