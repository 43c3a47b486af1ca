"""From a GGUF file's metadata to the configuration of transformers.

Every number that the file states is either set here or refused. A loader that keeps its own defaults for the numbers it
does not know builds another model than the file's, and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import ModelLoadError
from grace_retrieval.gguf.header import GGUFHeader

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["ARCHITECTURES", "build_config"]

_EMBEDDERS = ("bert", "gemma-embedding", "t5encoder", "eurobert", "clip", "jina", "nomic", "neo-bert", "modern-bert")


def build_config(header: GGUFHeader) -> PreTrainedConfig:
    """The configuration of the model in a file.

    Raises:
        ModelLoadError: If the architecture is not known, or the file states a number that would not be honoured.
    """
    name = header.architecture
    if (
        any(word in name for word in _EMBEDDERS)
        or header.own("pooling_type")
        or header.own("attention.causal") is False
    ):
        raise ModelLoadError(
            f"{header.path} holds an embedding model or an encoder (architecture {name!r}), which cannot write a "
            "rationale. Give a model that writes, such as a Llama, Qwen or Gemma with -Instruct or -it in its name."
        )
    if name not in ARCHITECTURES:
        raise ModelLoadError(
            f"{header.path} has the architecture {name!r}; read from GGUF are {', '.join(sorted(ARCHITECTURES))}. "
            "Give the model's own folder, with config.json and *.safetensors, instead of the GGUF file."
        )
    if header.own("expert_count"):
        raise ModelLoadError(
            f"{header.path} is a mixture of {header.own('expert_count')} experts, which is not read from GGUF. Give "
            "the model's own folder, with config.json and *.safetensors."
        )
    header.own("expert_used_count")
    header.own("rope.scaling.finetuned")  # says where the scaling comes from, not what it is
    config = ARCHITECTURES[name](header)
    if unknown := header.unused():
        stated = ", ".join(f"{key}={header.get(key)!r}" for key in unknown[:4])
        raise ModelLoadError(
            f"{header.path} states {stated}, which is not known here: without it, another model than the file's would "
            "be built. Give the model's own folder, with config.json and *.safetensors."
        )
    return config


def _llama(header: GGUFHeader) -> PreTrainedConfig:
    from transformers import LlamaConfig

    common = _common(header)
    width = common["head_dim"]
    rope = _rope(header, width)
    if "rope_freqs.weight" in header.tensors:
        rope = _llama3_rope(header, rope, width)
    return LlamaConfig(
        **common,
        rope_parameters=rope,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
    )


def _qwen2(header: GGUFHeader) -> PreTrainedConfig:
    from transformers import Qwen2Config

    common = _common(header)
    if common.pop("head_dim") * common["num_attention_heads"] != common["hidden_size"]:
        raise ModelLoadError(f"{header.path}: a Qwen2 whose heads are not as wide as its states is not known.")
    return Qwen2Config(**common, rope_parameters=_rope(header, common["hidden_size"] // common["num_attention_heads"]))


def _qwen3(header: GGUFHeader) -> PreTrainedConfig:
    from transformers import Qwen3Config

    common = _common(header)
    return Qwen3Config(
        **common,
        rope_parameters=_rope(header, common["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in header.tensors,
    )


def _gemma3(header: GGUFHeader) -> PreTrainedConfig:
    from transformers import Gemma3TextConfig

    common = _common(header)
    layers = common["num_hidden_layers"]
    window = header.own("attention.sliding_window", 0)
    period = header.own("attention.sliding_window_pattern", 6)
    if not isinstance(period, int):
        raise ModelLoadError(f"{header.path} lists its sliding layers one by one, which is not known for Gemma 3.")
    rope = _rope(header, common["head_dim"])
    # llama.cpp goes by the number of layers too: the 27B model scales by the width of its states.
    scaled_by = common["hidden_size"] // common["num_attention_heads"] if layers == 62 else common["head_dim"]
    return Gemma3TextConfig(
        **common,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=scaled_by,
        sliding_window=window or common["max_position_embeddings"],
        layer_types=[
            "sliding_attention" if window and (layer + 1) % period else "full_attention" for layer in range(layers)
        ],
        rope_parameters={
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": header.own("rope.freq_base_swa", 10000.0)},
        },
        final_logit_softcapping=header.own("final_logit_softcapping"),
        attn_logit_softcapping=header.own("attn_logit_softcapping"),
    )


def _gpt2(header: GGUFHeader) -> PreTrainedConfig:
    from transformers import GPT2Config

    width = header.require("embedding_length")
    return GPT2Config(
        n_positions=header.require("context_length"),
        n_embd=width,
        n_layer=header.require("block_count"),
        n_head=header.require("attention.head_count"),
        n_inner=header.own("feed_forward_length", 4 * width),
        layer_norm_epsilon=header.require("attention.layer_norm_epsilon"),
        activation_function="gelu_new",
        **_vocabulary(header),
    )


ARCHITECTURES: dict[str, Callable[[GGUFHeader], PreTrainedConfig]] = {
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
"""Architectures that are read, by the names that files give them."""


def _common(header: GGUFHeader) -> dict[str, Any]:
    """What a decoder with rotary positions and RMS norms states."""
    heads, width = header.require("attention.head_count"), header.require("embedding_length")
    layers, inner = header.require("block_count"), header.require("feed_forward_length")
    if isinstance(heads, list) or isinstance(inner, list):
        raise ModelLoadError(f"{header.path}: layers of different shapes are not known for {header.architecture!r}.")
    head = header.own("attention.key_length", width // heads)
    if header.own("attention.value_length", head) != head:
        raise ModelLoadError(f"{header.path}: keys and values of different widths are not known here.")
    scale = header.own("attention.scale")
    if scale and not math.isclose(scale, head**-0.5, rel_tol=1e-4):
        raise ModelLoadError(f"{header.path} scales attention by {scale}, and not by {head**-0.5:.5f}: not known here.")
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": header.own("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": header.require("context_length"),
        "rms_norm_eps": header.require("attention.layer_norm_rms_epsilon"),
        **_vocabulary(header),
    }


def _vocabulary(header: GGUFHeader) -> dict[str, Any]:
    """Size of the vocabulary, tokens with a meaning, and whether the output layer is the input's."""
    header.own("vocab_size")  # the tensor is what counts; convert.py compares it with the tokenizer
    embeddings, output = header.tensors.get("token_embd.weight"), header.tensors.get("output.weight")
    if embeddings is None:
        raise ModelLoadError(f"{header.path} has no tensor token_embd.weight: it is no whole language model.")
    ends = header.end_tokens()
    return {
        "vocab_size": int(embeddings.shape[-1]),
        "tie_word_embeddings": output is None or np.array_equal(output.data, embeddings.data),
        "bos_token_id": header.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": header.get("tokenizer.ggml.padding_token_id"),
    }


def _rope(header: GGUFHeader, width: int) -> dict[str, Any]:
    """Rotary positions, with linear scaling or YaRN."""
    if header.own("rope.dimension_count", width) != width:
        raise ModelLoadError(f"{header.path} turns a part of each head's numbers, which is not known here.")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": header.own("rope.freq_base", 10000.0)}
    kind, factor = header.own("rope.scaling.type", "none"), header.own("rope.scaling.factor", 1.0)
    original = header.own("rope.scaling.original_context_length")
    if header.own("rope.scaling.attn_factor", 1.0) != 1.0 or kind not in ("none", "linear", "yarn"):
        raise ModelLoadError(f"{header.path} scales rotary positions by {kind!r} in a way that is not known here.")
    if kind == "linear" and factor != 1.0:
        return {**rope, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        positions = original or header.require("context_length")
        return {**rope, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": positions}
    return rope


def _llama3_rope(header: GGUFHeader, rope: dict[str, Any], width: int) -> dict[str, Any]:
    """Llama 3.1 and later: the file holds what each frequency is divided by, transformers the rule for it.

    Raises:
        ModelLoadError: If no rule that is known gives the file's numbers.
    """
    stored = np.asarray(header.tensors["rope_freqs.weight"].data, dtype=np.float32).reshape(-1)
    for factor in (8.0, 32.0, 16.0, 4.0):
        rule = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if np.allclose(stored, _llama3_divisors(rope["rope_theta"], width, **rule), rtol=1e-3):
            return {**rope, "rope_type": "llama3", **rule, "original_max_position_embeddings": 8192}
    raise ModelLoadError(
        f"{header.path} stretches its rotary positions (rope_freqs.weight) by a rule that is not known here. Give the "
        "model's own folder, with config.json and *.safetensors."
    )


def _llama3_divisors(
    theta: float, width: int, *, factor: float, low_freq_factor: float, high_freq_factor: float
) -> npt.NDArray[np.float64]:
    """What Llama 3's rule divides each frequency by. Shape: (width / 2,)."""
    positions = 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = (positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    divisors = 1.0 / ((1.0 - smooth) / factor + smooth)
    divisors = np.where(wavelength < positions / high_freq_factor, 1.0, divisors)
    found: npt.NDArray[np.float64] = np.where(wavelength > positions / low_freq_factor, factor, divisors)
    return found
