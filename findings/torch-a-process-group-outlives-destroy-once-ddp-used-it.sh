#!/usr/bin/env bash
# Guess:    destroy_process_group() ends gloo's threads, at the latest once the model that DistributedDataParallel wrapped
#           has been deleted and the garbage collected: a script may then go on, fork, or end, as if alone.
# Seen:     with torch 2.13.0 that is so for a group that only communicated. Once a DDP model has run backwards, its
#           threads (gloo_tcp_loop, pt_gloo_runloop) are still there after destroy, del and gc.collect(), to the end of
#           the process, though torch.distributed says that nothing is initialised.
# Hence:    wait a moment before a process of a training ends, so that these threads are idle when the interpreter goes;
#           do not fork behind a training.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
cd "$work"
cat > seen.py <<'PY'
import gc, glob, os, sys, time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def gloo() -> list[str]:
    names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
    return sorted(name for name in names if "gloo" in name)


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.barrier()
if sys.argv[1] == "ddp":
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
dist.destroy_process_group()
if sys.argv[1] == "ddp":
    del model
gc.collect()
time.sleep(0.5)
left = gloo()
print(f"{sys.argv[1]}: initialised: {dist.is_initialized()}; threads left: {left}", flush=True)
raise SystemExit(0 if bool(left) == (sys.argv[1] == "ddp") and not dist.is_initialized() else 1)
PY
for group in alone ddp; do
    "$work/venv/bin/python" seen.py "$group" 2> "$work/log" || { cat "$work/log" >&2; echo "torch behaves otherwise now." >&2; exit 1; }
done
