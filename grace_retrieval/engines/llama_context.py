"""A model and a context of llama.cpp, as few calls of its C interface: decode tokens of several sequences, get states.

Of the tokens of a prompt only the states are wanted, and llama.cpp computes logits wherever it gives a state: for a
large vocabulary most of the work. It has no switch for that, so the evaluation is watched: once the states (its last
tensors but one) are there it is told to stop, and what would follow is the product with the output layer.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import EngineError, MissingExtraError, ModelLoadError

__all__ = ["Fed", "LlamaContext", "import_llama_cpp"]

Float32 = npt.NDArray[np.float32]
logger = logging.getLogger(__name__)

_STATES = (b"result_norm", b"result_embd_pooled")
_kept: list[Any] = []  # the callback that llama.cpp calls with its messages


def import_llama_cpp() -> ModuleType:
    """Import the bindings, and hand llama.cpp's messages to Python's logging.

    Raises:
        MissingExtraError: If they are not installed.
    """
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise MissingExtraError("llama-cpp-python", "llama-cpp", "engine='llama-cpp'") from error
    if not _kept:
        hear = llama_cpp.llama_log_callback(lambda level, text, data: logger.debug("%s", text.decode(errors="replace")))
        _kept.append(hear)
        llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


@dataclass(frozen=True)
class Fed:
    """Tokens of one sequence for one call.

    Attributes:
        sequence: Number of the sequence.
        start: Position of the first token.
        tokens: Token ids.
    """

    sequence: int
    start: int
    tokens: Sequence[int]


class LlamaContext:
    """A loaded model with room for some tokens of some sequences.

    Args:
        path: GGUF file.
        tokens: Tokens that fit, those of all sequences together.
        sequences: Most sequences at once.
        threads: Threads of a call.
        exact: Whether attention is computed in float32 instead of float16.

    Raises:
        ModelLoadError: If llama.cpp cannot load the file, or not give it so much room.
    """

    def __init__(self, path: str, *, tokens: int, sequences: int, threads: int, exact: bool = False) -> None:
        self._library: Any = import_llama_cpp()
        library = self._library
        options = library.llama_model_default_params()
        options.n_gpu_layers = 0 if not library.llama_supports_gpu_offload() else -1
        self._model = library.llama_model_load_from_file(path.encode(), options)
        if not self._model:
            raise ModelLoadError(f"llama.cpp cannot load {path}. Is the file whole, and its architecture known to it?")
        self.hidden_size = int(library.llama_model_n_embd(self._model))
        self.vocab_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))
        self.tokens = tokens
        self._stop_at_states = False
        self._reached = False
        self._name = library.llama_cpp._lib.ggml_get_name
        self._name.restype, self._name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._watch = library.ggml_backend_sched_eval_callback(self._watched)
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = tokens
        settings.n_ubatch = min(tokens, 512)
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings = True
        settings.pooling_type = library.LLAMA_POOLING_TYPE_NONE
        settings.kv_unified = True  # so that sequences can share the keys and values of their prefix
        if exact:
            settings.type_k = settings.type_v = library.GGML_TYPE_F32
            settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cb_eval = self._watch
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise ModelLoadError(f"llama.cpp cannot make a context of {tokens} tokens for {path}: give fewer tokens.")
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(tokens, 0, 1)

    def _watched(self, tensor: int | None, ask: bool, data: Any) -> bool:
        """Asked of each tensor whether it is wanted (ask), and then whether to go on behind it."""
        if not self._stop_at_states:
            return not ask
        found = self._name(tensor) in _STATES
        if ask:
            return found
        self._reached = True
        return False

    def decode(self, fed: Sequence[Fed], *, logits: bool) -> tuple[Float32, Float32 | None]:
        """Run tokens behind what their sequences hold.

        Args:
            fed: Tokens by sequence; together they fit in the context's tokens.
            logits: Whether the logits are wanted.

        Returns:
            States of all tokens, in their order. Shape: (tokens, hidden), float32. And their logits, or None. Shape:
            (tokens, vocabulary), float32. Both are valid until the next call.

        Raises:
            EngineError: If llama.cpp fails.
        """
        batch, count = self._batch, 0
        for part in fed:
            for offset, token in enumerate(part.tokens):
                batch.token[count] = token
                batch.pos[count] = part.start + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = part.sequence
                batch.logits[count] = 1
                count += 1
        batch.n_tokens = count
        self._stop_at_states, self._reached = not logits, False
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(
                f"llama.cpp could not run {count} tokens of {len(fed)} sequences (status {status}). Give a smaller "
                "max_batch_tokens, or shorter texts."
            )
        states = np.ctypeslib.as_array(self._library.llama_get_embeddings(self._context), (count, self.hidden_size))
        if not logits:
            return states, None
        return states, np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (count, self.vocab_size))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a sequence begin with the first `length` tokens of another."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def forget(self, sequence: int) -> None:
        """Drop what a sequence holds; -1 is all of them."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Free context and model."""
        for name, free in (("_batch", "llama_batch_free"), ("_context", "llama_free"), ("_model", "llama_model_free")):
            held = self.__dict__.pop(name, None)
            if held is not None:
                getattr(self._library, free)(held)

    def __del__(self) -> None:
        """Free what was not closed."""
        self.close()
