#!/usr/bin/env bash
# Guess:    `PeftModel.from_pretrained(base, folder)` raises, or warns, if the adapter holds weights for layers that the
#           base does not have: it was trained on another model.
# Seen:     with peft 0.21.2 and transformers 5.23.0 the adapter of a model with four layers loads onto one with two. The
#           weights of the other two layers, half of the adapter, are left out: no error, no warning, no log line.
#           (A weight that the base expects and the adapter lacks does give a warning.)
# Hence:    compare the names in adapter_model.safetensors with those of the loaded model before merging.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate safetensors
cd "$work"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cat > seen.py <<'PY'
import contextlib
import io
import logging
import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM


def model(layers):
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
                                        num_attention_heads=2, num_key_value_heads=2))


get_peft_model(model(4), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
saved = set(load_file("adapter/adapter_model.safetensors"))

said = io.StringIO()
logging.basicConfig(stream=said, level=logging.WARNING)
with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(said):
    warnings.simplefilter("always")
    loaded = PeftModel.from_pretrained(model(2), "adapter")
there = {name.replace(".default", "") for name in loaded.state_dict()}
about = [str(one.message) for one in warned if "layers" in str(one.message) or "key" in str(one.message).lower()]
about += [line for line in said.getvalue().splitlines() if "layers" in line or "key" in line.lower()]
print(f"{len(saved)} weights saved, {len(saved & there)} loaded; said about it: {about or 'nothing'}")
raise SystemExit(0 if len(saved) == 8 and len(saved & there) == 4 and not about else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "peft behaves otherwise now." >&2; exit 1; }
