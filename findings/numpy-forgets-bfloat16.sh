#!/usr/bin/env bash
# Guess:    np.load gives back the bfloat16 vectors (ml_dtypes, as JAX and safetensors make them) that np.save wrote, or
#           np.save refuses them.
# Seen:     with numpy 2.4.6 and ml_dtypes 0.6.0 both .npy and .npz are written without a word as two bytes of nothing in
#           particular: what is loaded has the dtype V2, and no arithmetic.
# Hence:    save float32, or view what was loaded: np.load(file).view(ml_dtypes.bfloat16).
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
cat > seen.py <<'PY'
import warnings

import ml_dtypes
import numpy as np

warnings.simplefilter("error")
vectors = np.array([[0.6, 0.8], [1.0, 0.0]], dtype=ml_dtypes.bfloat16)
np.save("vectors.npy", vectors)
np.savez("vectors.npz", vectors=vectors)
loaded = np.load("vectors.npy")
kinds = [loaded.dtype, np.load("vectors.npz")["vectors"].dtype]
again = loaded.view(ml_dtypes.bfloat16)
print(kinds, bool((again == vectors).all()))
raise SystemExit(0 if kinds == [np.dtype("V2")] * 2 and (again == vectors).all() else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "numpy behaves otherwise now." >&2; exit 1; }
