#!/usr/bin/env bash
# Guess:    writing an adapter into a local folder needs no network and tells nobody anything.
# Seen:     with peft 0.21.2 save_pretrained asks huggingface.co for the config of the base model, by its name, whenever
#           that name is no local folder: at every checkpoint of a training, also for a name that was never on the hub. It
#           wants to know whether the vocabulary has grown. Without a network there is a warning, and it is taken not to
#           have grown.
# Hence:    save_embedding_layers=False (or True), HF_HUB_OFFLINE=1, or a folder as base_model_name_or_path.
# Fails if this changes. (No request leaves: names are not resolved in this script.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate
cd "$work"
unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
export TOKENIZERS_PARALLELISM=false
cat > seen.py <<'PY'
import socket

asked = []


def refuse(host, *_, **__):
    asked.append(host)
    raise socket.gaierror(socket.EAI_NONAME, "no names are resolved here")


socket.getaddrinfo = refuse

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

shape = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
adapted = get_peft_model(LlamaForCausalLM(LlamaConfig(**shape)), LoraConfig(r=2, target_modules=["q_proj"]))
adapted.peft_config["default"].base_model_name_or_path = "our-own-model"
before = len(asked)
adapted.save_pretrained("adapter")
by_default = asked[before:]
adapted.save_pretrained("adapter", save_embedding_layers=False)
print("hosts asked for:", sorted(set(by_default)), "and with save_embedding_layers=False:", asked[before + len(by_default) :])
raise SystemExit(0 if set(by_default) == {"huggingface.co"} and len(asked) == before + len(by_default) else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "peft behaves otherwise now." >&2; exit 1; }
