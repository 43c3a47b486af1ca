#!/usr/bin/env bash
# Guess:    load_dataset("json") keeps an id that is a string in the file as that string; if it does not, features that say
#           Value("string") mend it.
# Seen:     with datasets 5.2.0 (pyarrow 25.0.0) a corpus whose ids are days ("2021-05-04", minutes, news, court decisions)
#           comes back with times as ids, and with features=Features({"_id": Value("string"), ...}) with the strings
#           "2021-05-04 00:00:00", so no judgement names a document any more. One id that is no day ("2021-05-04a") leaves
#           all of them as they are.
# Hence:    read the lines with json and give them to Dataset.from_list, which keeps them.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.0
cd "$work"
cat > seen.py <<'PY'
import datetime
import json
from pathlib import Path

from datasets import Dataset, Features, Value, load_dataset


def ids(name, *given, **options):
    path = Path(f"{name}.jsonl")
    path.write_text("".join(json.dumps({"_id": one, "text": "Minutes."}) + "\n" for one in given))
    return load_dataset("json", data_files=str(path), split="train", cache_dir="cache", **options)["_id"]


days = list(ids("days", "2021-05-04", "2021-05-05"))
mixed = list(ids("mixed", "2021-05-04", "2021-05-04a"))
told = list(ids("told", "2021-05-04", features=Features({"_id": Value("string"), "text": Value("string")})))
read = list(Dataset.from_list([json.loads(line) for line in Path("days.jsonl").read_text().splitlines()])["_id"])
print(days, mixed, told, read)
seen = days == [datetime.datetime(2021, 5, 4), datetime.datetime(2021, 5, 5)]
seen = seen and mixed == ["2021-05-04", "2021-05-04a"] and told == ["2021-05-04 00:00:00"]
raise SystemExit(0 if seen and read == ["2021-05-04", "2021-05-05"] else 1)
PY
HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" seen.py 2> "$work/log" || {
  cat "$work/log" >&2
  echo "datasets behaves otherwise now." >&2
  exit 1
}
