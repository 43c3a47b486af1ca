"""PEFT folders as models: real adapters on real bases, and everything that does not go together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from grace_retrieval import GraceEmbedder
from grace_retrieval.errors import ModelLoadError
from grace_retrieval.loading import load_policy
from tests.core.gguf_files import write_gguf

TEXTS = ["Bread rises because yeast turns sugar into gas.", "Tides follow the moon."]
QUIET: dict[str, Any] = {"cache": None, "max_new_tokens": 4}


def train(base: str, folder: Path, *, size: float = 0.5, name: str | None = None) -> Any:
    """An adapter with random weights, saved as PEFT saves it; the base with it on."""
    model, _ = load_policy(base, model_kwargs={"dtype": "float32"})
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
        torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base if name is None else name
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return adapted.eval()


def test_an_adapter_is_a_model(tiny_policy: Path, tmp_path: Path) -> None:
    adapted = train(str(tiny_policy), tmp_path / "a")
    embedder = GraceEmbedder(tmp_path / "a", **QUIET)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found = embedder.pipeline.module(ids).logits
        expected = adapted(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    base = GraceEmbedder(tiny_policy, **QUIET)
    assert not np.allclose(embedder.encode(TEXTS), base.encode(TEXTS))
    assert embedder.fingerprint().weights != base.fingerprint().weights
    assert embedder.fingerprint().tokenizer == base.fingerprint().tokenizer


def test_a_small_adapter_survives_bfloat16(tiny_policy: Path, tmp_path: Path) -> None:
    adapted = train(str(tiny_policy), tmp_path / "a", size=2e-3)
    merged, _ = load_policy(str(tmp_path / "a"), model_kwargs={"dtype": "bfloat16"})
    whole = adapted.merge_and_unload()
    for name, weight in merged.state_dict().items():
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight, whole.state_dict()[name].to(torch.bfloat16), atol=0, rtol=0)


def test_on_a_gguf_file_and_beside_its_base(tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", "llama")
    train(str(tmp_path / "base.gguf"), tmp_path / "a", name="../base.gguf")
    options = {**QUIET, "max_seq_length": 200, "model_kwargs": {"dtype": "float32"}}
    embedder = GraceEmbedder(tmp_path / "a", **options)
    base = GraceEmbedder(tmp_path / "base.gguf", **options)
    assert not embedder.fingerprint().weights.startswith("gguf-"), "it is not the file any more"
    assert not np.allclose(embedder.encode(TEXTS), base.encode(TEXTS))
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = GraceEmbedder(tmp_path / "b", **options)
    assert moved.fingerprint().digest() == embedder.fingerprint().digest()


def test_its_own_tokenizer_comes_first(tiny_policy: Path, tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    train(str(tiny_policy), tmp_path / "a")
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    tokenizer.save_pretrained(tmp_path / "a")
    embedder = GraceEmbedder(tmp_path / "a", **QUIET)
    assert embedder.pipeline.tokenizer.chat_template == tokenizer.chat_template
    make_tokenizer(added=[f"word{n}" for n in range(50)]).save_pretrained(tmp_path / "a")
    with pytest.raises(ModelLoadError, match="has token ids up to"):
        GraceEmbedder(tmp_path / "a", **QUIET)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def test_what_does_not_go_together(tiny_policy: Path, tmp_path: Path) -> None:
    train(str(tiny_policy), tmp_path / "a")
    edit(tmp_path / "a", base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(
        ModelLoadError, match=r"The base of the adapter in .* is missing: '/nowhere/at/all' does not exist"
    ):
        GraceEmbedder(tmp_path / "a", **QUIET)
    edit(tmp_path / "a", base_model_name_or_path=None)
    with pytest.raises(ModelLoadError, match="does not say what it was trained on"):
        GraceEmbedder(tmp_path / "a", **QUIET)
    write_gguf(tmp_path / "other.gguf", "gpt2")
    edit(tmp_path / "a", base_model_name_or_path=str(tmp_path / "other.gguf"))
    with pytest.raises(ModelLoadError, match=r"cannot be put on .*other\.gguf.*another model"):
        GraceEmbedder(tmp_path / "a", **QUIET)
    edit(tmp_path / "a", base_model_name_or_path=str(tiny_policy))
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(
        {**weights, name.replace("layers.0", "layers.77"): weights[name].clone()},
        tmp_path / "a" / "adapter_model.safetensors",
    )
    with pytest.raises(ModelLoadError, match=r"holds 1 weights that .* has no place for"):
        GraceEmbedder(tmp_path / "a", **QUIET)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelLoadError, match="damaged, or was trained on another"):
        GraceEmbedder(tmp_path / "a", **QUIET)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"adapter_model\.bin is a pickle"):
        GraceEmbedder(tmp_path / "a", **QUIET)
    (tmp_path / "a" / "adapter_config.json").write_text("[")
    with pytest.raises(ModelLoadError, match="is damaged"):
        GraceEmbedder(tmp_path / "a", **QUIET)
