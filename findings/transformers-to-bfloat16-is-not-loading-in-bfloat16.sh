#!/usr/bin/env bash
# Guess:    from_pretrained(dtype=torch.float32).to(torch.bfloat16) is the model that from_pretrained(dtype=torch.bfloat16)
#           gives. (One casts like this after merging adapters or averaging weights in float32.)
# Seen:     with transformers 5.23.0 all weights are equal and the rotary frequencies are not: loading keeps them in
#           float32, .to() rounds them too, as they are a buffer. At position 4,000 a token is turned by up to 1.7
#           radians more or less than it should be.
# Hence:    cast the parameters one by one, or save and load again.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$work"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cat > seen.py <<'PY'
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
LlamaForCausalLM(config).save_pretrained("model")
loaded = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
cast = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).to(torch.bfloat16)
equal = all(torch.equal(one, other) for one, other in zip(loaded.parameters(), cast.parameters()))
kept, rounded = loaded.model.rotary_emb.inv_freq, cast.model.rotary_emb.inv_freq
off = float(((kept - rounded.float()) * 4000).abs().max())
print(f"weights equal: {equal}; frequencies in {kept.dtype} and {rounded.dtype}; off by {off:.2f} radians at position 4,000")
raise SystemExit(0 if equal and kept.dtype == torch.float32 and rounded.dtype == torch.bfloat16 and off > 1 else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "transformers behaves otherwise now." >&2; exit 1; }
