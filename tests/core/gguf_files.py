"""GGUF files of tiny models, written with the `gguf` package as llama.cpp's own converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARD_TEXTS = [
    "Steps:\n\n1. Mix 250 g of flour\n\n12. wait\n",
    "def f(x):\n\tif x  >= 10:\n\t\treturn x**2  # it's 100%\n",
    "| a | 12345 |\n|---|------:|\n|  é | 3.14e-10 |",
    "Don't we'll THEY'RE I'D  trailing   ",
    "Größe 東京 مرحبا १२३ 1²³ ½",
    " leading\r\n\r\n  \t mixed\u00a0space",
    "<think> no markup </think>",
]
_CORPUS = [
    *HARD_TEXTS,
    "Bread rises because yeast turns sugar into gas. Tides follow the moon, twice a day, every 12 hours.",
    "In 1969, 2024 and 3000 the numbers 10, 100 and 1000 were written 12345 times.\n\n1. One\n2. Two\n10. Ten\n",
] * 3
_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_RULES = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    ],
}
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    "qwen2": {"model_type": "qwen2", **_COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    # Heads wider than states divided by heads, which is what files state in attention.key_length.
    "qwen3": {
        "model_type": "qwen3",
        **_COMMON,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    # A scale of attention that is not the default of transformers; the sixth layer sees everything.
    "gemma3": {
        "model_type": "gemma3_text",
        **_COMMON,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    # Positions that are not GPT-2's 1,024.
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.1,
    },
}
RULE_OF = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2", "gemma3": None, "gpt2": "gpt-2"}
"""How text is parted in the file of each architecture; None is SentencePiece."""


def train_byte_level(rule: str, size: int = 480) -> Tokenizer:
    """A small byte-level BPE, parted by a rule that files name."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *[pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _RULES[rule]],
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=_CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def sentencepiece_vocabulary(size: int = 200) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a small SentencePiece vocabulary with bytes; earlier merges have higher scores."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, _ in vocabulary if "\n" not in word and "\t" not in word]
    merged = [word for word in words if len(word) > 1]
    single = [word for word in words if len(word) == 1]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"]
    types = [3, 3, 3, 2, 3, 3]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [6] * 256
    scores = [0.0] * len(tokens)
    tokens, types = [*tokens, *merged, *single], [*types, *[1] * len(words)]
    scores += [-float(place) for place in range(len(words))]
    return tokens, scores, types


def make_model(architecture: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """A random model of one of `CONFIGS`, with biases and norms that are no constants."""
    from transformers import AutoConfig

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**CONFIGS[architecture], vocab_size=vocab_size)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_gguf(
    path: Path,
    architecture: str,
    *,
    model: PreTrainedModel | None = None,
    rule: str | None = "of the architecture",
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    template: str | None = TEMPLATE,
    tokenizer: bool = True,
    stated: str | None = None,
) -> PreTrainedModel:
    """Write a file, and give back the model that is in it.

    Args:
        path: The file.
        architecture: One of `CONFIGS`.
        model: The model; None makes a random one.
        rule: How text is parted; None is SentencePiece.
        metadata: Values to add, or to leave out where None.
        tensors: Tensors to add.
        template: Chat template.
        tokenizer: Whether there is one.
        stated: Architecture that the file says it is.
    """
    rule = RULE_OF[architecture] if rule == "of the architecture" else rule
    writer = GGUFWriter(path, stated or architecture)
    fields: dict[str, Any] = {}
    if rule is None:
        words, scores, types = sentencepiece_vocabulary()
        fields |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
        fields |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.unknown_token_id": 3}
        ends = {"bos": 2, "eos": 5, "padding": 0}
    else:
        trained = train_byte_level(rule)
        vocabulary = trained.get_vocab()
        words = sorted(vocabulary, key=lambda word: vocabulary[word])
        types = [3 if word in _CONTROL else 1 for word in words]
        fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule}
        fields["tokenizer.ggml.merges"] = [" ".join(pair) for pair in _merges(trained)]
        ends = {"bos": 0, "eos": 2, "padding": 0}
    fields |= {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": types}
    fields |= {f"tokenizer.ggml.{role}_token_id": token for role, token in ends.items()}
    if template is not None:
        fields["tokenizer.chat_template"] = template
    if not tokenizer:
        fields = {}
    model = make_model(architecture, len(words)) if model is None else model
    fields |= _describe(architecture, model.config)
    fields |= metadata or {}
    for name, value in fields.items():
        _add(writer, name, value)
    for name, tensor in {**_tensors(architecture, model), **(tensors or {})}.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _describe(architecture: str, config: Any) -> dict[str, Any]:
    if architecture == "gpt2":
        stated = {
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "block_count": config.n_layer,
            "feed_forward_length": 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
        return {f"gpt2.{name}": value for name, value in stated.items()}
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    stated = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture == "llama":
        stated |= {"rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}
    if architecture in ("qwen3", "gemma3"):
        stated |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture == "gemma3":
        stated["attention.sliding_window"] = config.sliding_window
    if rope["rope_type"] in ("linear", "yarn"):
        stated |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        stated["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return {f"{architecture}.{name}": value for name, value in stated.items()}


_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GEMMA_PARTS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _tensors(architecture: str, model: PreTrainedModel) -> dict[str, Any]:
    config, found = model.config, {}
    parts = {**_PARTS, **(_GEMMA_PARTS if architecture == "gemma3" else {})}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        if architecture == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        if architecture == "llama" and "q_proj" in name:
            value = _permute(value, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            value = _permute(value, config.num_key_value_heads)
        if architecture == "gpt2" and ".h." in name and value.ndim == 2:
            value = value.T
        if name in _NAMES:
            found[_NAMES[name]] = value
            continue
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        found[f"blk.{layer}.{parts[part]}.{kind}"] = value
    return found


def _permute(weights: Any, heads: int) -> Any:
    """llama.cpp turns neighbouring numbers together, transformers those half a head apart."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)
