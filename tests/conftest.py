"""Tiny real models for every test: random weights from fixed seeds, no network, no user's cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when these libraries are imported, so before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only cost time with models this small
os.environ["GRACE_MODEL"] = "grace-nano"  # what commands take by default has to be fetched

import pytest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grace_retrieval import GraceEmbedder

FIXTURES = Path(__file__).parent / "fixtures"
TINY_POLICY = FIXTURES / "tiny-policy"

_SHAPE: dict[str, Any] = {
    "vocab_size": 776,  # the 768 tokens of tiny-policy, and room for added ones
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,  # large enough that the two best tokens never tie
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_LLAMA_LIKE = {**_SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
_GPT2_LIKE = {
    "vocab_size": 776,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# Name → configuration class of transformers and its arguments.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA_LIKE),
    "qwen2": ("Qwen2Config", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", {**_LLAMA_LIKE, "head_dim": 8, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", _GPT2_LIKE),
    "gpt_neox": ("GPTNeoXConfig", {**_SHAPE, "intermediate_size": 64, "max_position_embeddings": 512}),
    "mistral": ("MistralConfig", {**_LLAMA_LIKE, "sliding_window": 9}),
    "gemma2": (
        "Gemma2Config",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "sliding_window": 16,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 9}),
    "granite": (
        "GraniteConfig",
        {**_LLAMA_LIKE, "logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    "phi3": (
        "Phi3Config",
        {
            **_LLAMA_LIKE,
            "original_max_position_embeddings": 48,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "factor": 512 / 48,
            },
        },
    ),
    "gptj": ("GPTJConfig", {**_GPT2_LIKE, "rotary_dim": 4}),
    "bloom": ("BloomConfig", {**{k: v for k, v in _SHAPE.items() if "num" not in k}, "n_layer": 2, "n_head": 4}),
    "mamba": ("MambaConfig", {**{k: v for k, v in _SHAPE.items() if k != "num_attention_heads"}, "state_size": 4}),
    "opt": (
        "OPTConfig",
        {
            **{k: v for k, v in _SHAPE.items() if k != "initializer_range"},
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 512,
            "init_std": 0.2,
        },
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **{k: v for k, v in _SHAPE.items() if "num" not in k},
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 9,
            "max_position_embeddings": 512,
        },
    ),
}


_USERS_OWN = os.environ.get("XDG_CACHE_HOME")


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own cache folder is empty too: what was fetched into it would be found from there."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(autouse=True)
def grace_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default cache of every test, and of the processes it starts, is a folder of its own."""
    folder = tmp_path / "grace-cache"
    monkeypatch.setenv("GRACE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the policy of grace-small and the merged model, shared by all processes of a run."""
    from grace_retrieval.fetching import find_fetched
    from grace_retrieval.loading import local_folder, resolve_model

    with pytest.MonkeyPatch.context() as patched:
        if _USERS_OWN is None:
            patched.delenv("XDG_CACHE_HOME", raising=False)
        else:
            patched.setenv("XDG_CACHE_HOME", _USERS_OWN)
        place = find_fetched("SmolLM2-135M-Instruct")
    if place is None:
        pytest.skip("the policy of grace-small is not here: grace fetch SmolLM2-135M-Instruct")
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    models = root / "small" / "models"
    models.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (models / place.parent.name).symlink_to(place.parent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRACE_CACHE_DIR", str(models.parent))
        local_folder(resolve_model("grace-small"))
    return models


@pytest.fixture
def grace_small(small_models: Path, grace_cache_dir: Path) -> None:
    """The test's cache folder holds what grace-small needs."""
    grace_cache_dir.mkdir()
    (grace_cache_dir / "models").symlink_to(small_models)


@pytest.fixture
def as_printed(grace_small: None) -> None:
    """This machine computes as the one did that printed what the pages show."""
    import torch

    from grace_retrieval.gguf.convert import fastest_dtype

    if fastest_dtype() != torch.bfloat16:
        pytest.skip("the pages show what a CPU prints that computes in bfloat16")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """tests/fixtures."""
    return FIXTURES


@pytest.fixture(scope="session")
def tiny_policy() -> Path:
    """Folder of a Qwen2 of 2 layers, 32 dimensions, 2048 positions and 768 byte-level tokens; ChatML template."""
    return TINY_POLICY


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """`make_model("llama", seed=0, dtype=None, **config)`: a new causal LM with random weights."""

    def make(name: str, *, seed: int = 0, dtype: torch.dtype | None = None, **config: Any) -> PreTrainedModel:
        import torch
        import transformers

        class_name, arguments = _ARCHITECTURES[name]
        configuration = getattr(transformers, class_name)(**{**arguments, **config})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(configuration)
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        return model.to(dtype or torch.float32).eval()

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    """`make_tokenizer(chat_template=..., added=[...])`: tiny-policy's tokenizer, changed."""

    def make(chat_template: str | None = "as it is", added: list[str] | None = None) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
        if chat_template != "as it is":
            tokenizer.chat_template = chat_template
        tokenizer.add_tokens(added or [])
        return tokenizer

    return make


@pytest.fixture
def make_embedder(tiny_policy: Path) -> Iterator[Callable[..., GraceEmbedder]]:
    """`make_embedder(**arguments)`: tiny-policy as a GraceEmbedder, with short rationales and no cache unless given."""
    made: list[GraceEmbedder] = []

    def make(model: str | os.PathLike[str] = tiny_policy, **arguments: Any) -> GraceEmbedder:
        from grace_retrieval import GraceEmbedder

        embedder = GraceEmbedder(model, **{"max_new_tokens": 8, "cache": None, "device": "cpu", **arguments})
        made.append(embedder)
        return embedder

    yield make
    for embedder in made:
        if embedder.cache is not None:
            embedder.cache.close()
