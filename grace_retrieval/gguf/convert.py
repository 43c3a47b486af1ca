"""A GGUF file as a model folder of transformers, made once in the user's cache folder.

The folder is called by the file's content and the dtype, so a file that was moved or copied finds it again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from grace_retrieval.errors import ModelLoadError
from grace_retrieval.gguf.architectures import build_config
from grace_retrieval.gguf.header import GGUFHeader, hash_file
from grace_retrieval.gguf.tokenizers import build_tokenizer
from grace_retrieval.identity import WeightsOrigin, hash_weights
from grace_retrieval.model_cache import made_once

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["convert_gguf", "count_parameters", "fastest_dtype", "load_model"]

_VERSION = 1
"""Raised whenever the same file would be converted into something else."""

_NO_WEIGHTS = frozenset({"rope_freqs.weight"})
"""Tensors that are part of the configuration."""


def fastest_dtype() -> torch.dtype:
    """bfloat16 where a GPU, or the CPU's own instructions, multiply it; float32 otherwise."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    supported = (getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if any(supported) else torch.float32


def convert_gguf(path: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Convert a GGUF file, or find what was converted before.

    Args:
        path: The file.
        dtype: Number format of the weights; None is the one that this machine runs fastest.

    Returns:
        A model folder with config.json, safetensors and tokenizer.

    Raises:
        ModelLoadError: If the file is damaged, holds something that is not known, or there is no space for the folder.
    """
    dtype = fastest_dtype() if dtype is None else dtype
    try:
        digest = hash_file(path)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    return made_once(
        f"gguf-{digest[:32]}-{str(dtype).removeprefix('torch.')}-{_VERSION}",
        lambda folder: _write(GGUFHeader(path), digest, folder, dtype),
        source=path,
        size=lambda: count_parameters(GGUFHeader(path)) * dtype.itemsize,
    )


def count_parameters(header: GGUFHeader) -> int:
    """Numbers in all tensors of a file."""
    return sum(int(tensor.n_elements) for tensor in header.tensors.values())


def _write(header: GGUFHeader, digest: str, folder: Path, dtype: torch.dtype) -> None:
    config, tokenizer = build_config(header), build_tokenizer(header)
    model = load_model(header, config, dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WeightsOrigin(content=hash_weights(model), name=f"gguf-{digest}").write(folder)


def load_model(header: GGUFHeader, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a file, dequantised.

    Raises:
        ModelLoadError: If the file lacks weights of it, or holds others.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = _read_weights(header, model, dtype)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tied = bool(config.tie_word_embeddings)
    if tied:
        weights.pop("lm_head.weight", None)
        expected.pop("lm_head.weight", None)
    held = len(header.tensors.keys() - _NO_WEIGHTS) - (tied and "output.weight" in header.tensors)
    wrong = sorted(
        [f"{name} is missing" for name in expected.keys() - weights.keys()]
        + [f"{name} is not known" for name in weights.keys() - expected.keys()]
        + [
            f"{name} has the shape {tuple(weights[name].shape)} and not {tuple(shape)}"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ]
    )
    if wrong or held != len(weights):
        what = "; ".join(wrong[:3]) or f"{held - len(weights)} of its {held} tensors have no place"
        raise ModelLoadError(
            f"{header.path} does not fit the {header.architecture!r} that it says it is: {what}. Give the model's own "
            "folder, with config.json and *.safetensors."
        )
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.eval()
    return model


def _read_weights(header: GGUFHeader, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights by the names of transformers, with what llama.cpp's converter did to them undone."""
    from gguf import dequantize
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    config = model.config
    sizes = {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=sizes)  # type: ignore[no-untyped-call]
    names = get_gguf_hf_weights_map(model, processor)
    weights: dict[str, torch.Tensor] = {}
    for tensor in tqdm(header.tensors.values(), desc=f"Converting {header.path.name}", disable=not os.isatty(2)):
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, KeyError, ValueError) as error:
            raise ModelLoadError(
                f"{header.path} holds {tensor.name} as {tensor.tensor_type.name}, which is not known here ({error}). "
                "Give the same model in another quantisation, such as Q4_K_M or Q8_0."
            ) from error
        read = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": weights}
        )
        if read.name in names:
            weights[names[read.name]] = torch.from_numpy(np.array(read.weights)).to(dtype)
    return {name: value.to(dtype) for name, value in weights.items()}
