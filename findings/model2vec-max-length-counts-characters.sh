#!/usr/bin/env bash
# Guess:    `StaticModel.encode(texts, max_length=512)` of model2vec reads the first 512 tokens of a text.
# Seen:     with model2vec 0.10.0 the text is first cut to 512 times the vocabulary's *median* token length in
#           characters. Where a text's tokens are longer than that, as long words and text of one subject are, its end is
#           not read although it has far fewer tokens: here a text of 101 tokens loses its last one.
# Hence:    max_length=None reads all of it; or give max_length in proportion to the texts' own token lengths.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check model2vec==0.10.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1
cat > seen.py <<'PY'
import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers

words = ["[UNK]", "[PAD]", *(f"a{number}" for number in range(50)), "internationalisation", "end"]
tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
model = StaticModel(vectors, tokenizer, config={"normalize": False})

text = " ".join(["internationalisation"] * 100)
tokens = len(tokenizer.encode(f"{text} end").ids)
moved = {
    limit: float(np.abs(model.encode([f"{text} end"], max_length=limit) - model.encode([text], max_length=limit)).max())
    for limit in (512, None)
}
print(f"{tokens} tokens; what the last one changes, by max_length: {moved}")
raise SystemExit(0 if tokens == 101 and moved[512] == 0 and moved[None] > 0 else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "model2vec behaves otherwise now." >&2; exit 1; }
