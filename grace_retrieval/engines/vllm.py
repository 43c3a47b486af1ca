"""The vLLM engine, for GPUs and many texts: rationales are written by continuous batching. An extra.

vLLM hands out no hidden states while it generates, so there are two passes over the same token ids:

    generating engine    prompt                → rationale
    pooling engine       prompt + rationale    → last hidden state of every token

The states behind the system prefix are averaged here, in float32. No text is ever tokenised again.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from grace_retrieval.engine import FinishReason, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.errors import EngineError, InputError, MissingExtraError, ModelLoadError, NonFiniteEmbeddingError
from grace_retrieval.identity import WeightsOrigin, hash_checkpoint
from grace_retrieval.loading import end_tokens as find_end_tokens
from grace_retrieval.loading import resolve_model
from grace_retrieval.repetition import LONGEST, SHORTEST, TIMES, repetition_start
from grace_retrieval.sentences import sentence_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["VLLMEngine"]

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]

GENERATE_TEXTS = 1024
"""Most texts handed to the generating engine at once, and most whose rationales an interruption loses."""

STATE_BYTES = 1 << 28
"""Most bytes of hidden states, in float32, that the pooling engine gives back at once."""


class VLLMEngine:
    """Runs a causal LM in vLLM (0.20 or later; Linux).

    It is a Policy: it loads tokenizer and weights by itself, and transformers loads none of them.

        embedder = GraceEmbedder(path, engine="vllm", engine_options={"max_model_len": 2048})

    An embedder that has the model in transformers already can be given one by hand, and then keeps both:
    `embedder.writer.engine = VLLMEngine(path, max_model_len=2048)`. After training or merging an adapter, save the
    model and make a new one.

    vLLM holds the weights twice, once to generate and once to pool, and each engine takes half of
    `gpu_memory_utilization`; `sequential` has only one of them in memory at a time. Each is loaded when it is first
    needed, which takes half a minute or more, and in a process of its own unless VLLM_ENABLE_V1_MULTIPROCESSING is 0:
    a script needs the usual `if __name__ == "__main__":`.

    Greedy rationales are those of the default engine, except where rounding decides between tokens of nearly equal
    probability. Sampled ones are others, as vLLM draws other random numbers; each text has its own stream, so they do
    not depend on the batch beyond rounding.

    Rationales that go in circles are ended by vLLM itself (`repetition_detection`, with our rule) and cut back here,
    before anything is pooled.

    What has been run: vLLM 0.32 on a CPU, eagerly, with both engines in one process and in two, side by side and in
    sequence, on small models of the Qwen2 and Llama architectures. In float32 all greedy rationales were those of the
    default engine and vectors within 1e-6 of its own; see benchmarks/programs/check_vllm.py. Of 0.20, only the source
    was compared. Nothing has been run on a GPU, with compiled graphs, or with `tensor_parallel_size` above 1.

    Args:
        model: A folder, a hub name, or a bundled model.
        end_tokens: Tokens that end a rationale; None takes those of tokenizer, model and generation config.
        dtype: Number format of the weights. None: as saved if there is a GPU, float32 otherwise. Both engines get the
            same one; vLLM's own default may differ between them.
        gpu_memory_utilization: Share of the GPU's memory for both engines together (on a CPU: of the main memory).
        max_model_len: Most tokens of a prompt with its rationale. None: all positions of the model, which for a model
            of long context takes much memory; the embedder needs max_seq_length + max_new_tokens.
        tensor_parallel_size: Number of GPUs that share the weights.
        enforce_eager: Whether to do without compiled graphs: faster to load, slower to run.
        sequential: Whether to write all rationales of a call first, then free the generating engine, then pool. Half
            the memory; every call loads both anew, so hand over many texts at once.
        revision: Version of the model on the hub.
        trust_remote_code: Whether to run Python code that comes with the model.

    Raises:
        MissingExtraError: If vLLM is not installed.
        InputError: If an option is out of range.
        ModelLoadError: If the model's configuration or tokenizer cannot be read.
    """

    family = "vllm"

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        end_tokens: Sequence[int] | None = None,
        dtype: Dtype | None = None,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        sequential: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        for name, value in (("max_model_len", max_model_len), ("tensor_parallel_size", tensor_parallel_size)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: give a positive number.")
        if not 0.0 < gpu_memory_utilization <= 1.0:
            raise InputError(f"gpu_memory_utilization={gpu_memory_utilization}: give a share above 0 and up to 1.")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise InputError(f"dtype={dtype!r}: give 'float32', 'bfloat16', 'float16' or None.")
        self._vllm = _import_vllm()
        self.model = resolve_model(model)
        self.gpu_memory_utilization = gpu_memory_utilization
        self.max_model_len = max_model_len
        self.tensor_parallel_size = tensor_parallel_size
        self.enforce_eager = enforce_eager
        self.sequential = sequential
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        config, self.tokenizer, found = _read_config(self.model, revision, trust_remote_code)
        text_config = config.get_text_config()
        self.end_tokens = frozenset(found if end_tokens is None else end_tokens)
        self._dtype = dtype or _default_dtype(config.dtype or text_config.dtype)
        self.context_length = int(max_model_len or getattr(text_config, "max_position_embeddings", None) or 1 << 30)
        self.hidden_size = int(text_config.hidden_size)
        self._tied = bool(config.tie_word_embeddings)
        self._weights_id: str | None = None
        self.lock = threading.RLock()
        self._engines: dict[str, Any] = {}
        self._counts: Counter[str] = Counter(texts=0, prompt_tokens=0, new_tokens=0, forward_passes=0)

    @property
    def dtype(self) -> str:
        """Number format of the weights, e.g. "float32"."""
        return self._dtype

    def weights_id(self) -> str:
        """Content hash of the weights as they are saved: that of the same model in transformers, loaded as saved.

        Raises:
            ModelLoadError: If there are no safetensors files, or they are damaged.
        """
        if self._weights_id is None:
            content, origin = hash_checkpoint(self._folder(), tied=self._tied), WeightsOrigin.read(self._folder())
            self._weights_id = origin.name if origin is not None and origin.content == content else content
        return self._weights_id

    def _folder(self) -> Path:
        """The folder of the model; one of the hub is downloaded, which vLLM would do too."""
        if Path(self.model).is_dir():
            return Path(self.model)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.model, revision=self.revision, allow_patterns=["*.safetensors", "*.json"]))

    @property
    def engine_options(self) -> dict[str, Any]:
        """Options that make an engine like this one by name, for the description of an embedder."""
        return {
            "dtype": self.dtype,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": self.enforce_eager,
            "sequential": self.sequential,
        }

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made: texts, prompt_tokens, new_tokens, forward_passes.

        vLLM does not tell its forward passes; the last one counts the calls of vLLM, each of which makes many.
        """
        return dict(self._counts)

    def run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
    ) -> Iterator[tuple[int, RationaleOutput]]:
        """Yield `(index of the request, output)` for every request, those that need no rationale first.

        Args:
            requests: Texts as token ids.
            sampling: How tokens are chosen; None is greedy.

        Yields:
            The place of a request in `requests` and its output.

        Raises:
            InputError: If a text and its rationale exceed `max_model_len`, or the temperature is above 2.
            EngineError: If vLLM cannot be started, or fails.
            NonFiniteEmbeddingError: If the model gives NaN or infinity.
        """
        sampling = sampling or SamplingOptions()
        self._check(requests, sampling)
        groups = self._write_all(requests, sampling)
        # In sequence, the last rationale is written before the first text is pooled.
        for group in list(groups) if self.sequential else groups:
            for part in self._parts(group):
                for text, vector in zip(part, self._pool(part), strict=True):
                    self._counts["texts"] += 1
                    self._counts["prompt_tokens"] += len(text.request.input_ids) - text.request.prefix_length
                    self._counts["new_tokens"] += len(text.rationale) if text.reason != "given" else 0
                    output = RationaleOutput(token_ids=text.rationale, finish_reason=text.reason, vector=vector)
                    yield text.index, output

    def states(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Run whole sequences, generating nothing.

        Args:
            sequences: Token ids; none is empty.

        Yields:
            Place of a sequence, and its last hidden states. Shape: (tokens, hidden_size), float32.

        Raises:
            EngineError: If vLLM cannot be started, or fails.
        """
        texts = [
            _Text(place, RationaleRequest(input_ids=tokens, prefix_length=0), (), "given")
            for place, tokens in enumerate(sequences)
        ]
        for part in self._parts(texts):
            for text, states in zip(part, self._states(part), strict=True):
                yield text.index, states.float().cpu().numpy()

    def close(self) -> None:
        """Free the memory of both engines. They are loaded again if they are needed again."""
        with self.lock:
            for kind in list(self._engines):
                self._stop(kind)

    # ------------------------------------------------------------------ the two passes

    def _write_all(self, requests: Sequence[RationaleRequest], sampling: SamplingOptions) -> Iterator[list[_Text]]:
        """Give every request its rationale, in groups: first the texts that need none written."""
        waiting = [index for index, r in enumerate(requests) if r.rationale_ids is None and r.max_new_tokens]
        ready = sorted(set(range(len(requests))).difference(waiting))
        yield [_Text(index, requests[index], requests[index].rationale_ids or (), "given") for index in ready]
        for first in range(0, len(waiting), GENERATE_TEXTS):
            yield self._write(waiting[first : first + GENERATE_TEXTS], requests, sampling)

    def _write(
        self, indices: Sequence[int], requests: Sequence[RationaleRequest], sampling: SamplingOptions
    ) -> list[_Text]:
        """Have the rationales of some requests generated."""
        prompts = [requests[index].input_ids for index in indices]
        watched = {}
        if sampling.stop_repeats:
            from vllm.sampling_params import RepetitionDetectionParams

            rule = RepetitionDetectionParams(min_pattern_size=SHORTEST, max_pattern_size=LONGEST, min_count=TIMES)
            watched = {"repetition_detection": rule}
        params = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=None if sampling.greedy else _seed(sampling, requests[index]),
                max_tokens=requests[index].max_new_tokens,
                stop_token_ids=sorted(self.end_tokens),
                ignore_eos=True,  # the end tokens alone decide, not the model's own generation config
                detokenize=False,
                **watched,
            )
            for index in indices
        ]
        texts = []
        for index, output in zip(indices, self._call("generate", prompts, params), strict=True):
            written = tuple(output.outputs[0].token_ids)
            reason: FinishReason = "length"
            if written and written[-1] in self.end_tokens:
                written, reason = written[:-1], "stop"
            # vLLM can stop at strings alone, and needs its detokenizer for them: it writes to the end, and is cut here.
            if sampling.max_sentences:
                kept = sentence_end(self.tokenizer, written, sampling.max_sentences)
                if kept is not None:
                    written, reason = written[:kept], "stop"
            if sampling.stop_repeats and (start := repetition_start(written)) is not None:
                written, reason = written[:start], "repeat"
            texts.append(_Text(index, requests[index], written, reason))
        return texts

    def _pool(self, texts: Sequence[_Text]) -> list[npt.NDArray[np.float32]]:
        """Mean hidden states of whole sequences behind their prefix. Shape of each: (hidden,)."""
        vectors = []
        for text, states in zip(texts, self._states(texts), strict=True):
            vector: npt.NDArray[np.float32] = states[text.request.prefix_length :].float().mean(0).cpu().numpy()
            if not np.isfinite(vector).all():
                raise NonFiniteEmbeddingError(
                    f"The model gave NaN or infinity for a text of {len(text.tokens)} tokens in {self.dtype}. Use "
                    "dtype='bfloat16' or 'float32'; if it is float32 already, its weights are probably damaged."
                )
            vectors.append(vector)
        return vectors

    def _states(self, texts: Sequence[_Text]) -> list[torch.Tensor]:
        """Last hidden states of whole sequences. Shape of each: (tokens, hidden_size)."""
        params = [self._vllm.PoolingParams(task="token_embed", use_activation=False) for _ in texts]
        found: list[torch.Tensor] = []
        for text, output in zip(texts, self._call("pooling", [text.tokens for text in texts], params), strict=True):
            states = output.outputs.data
            if tuple(states.shape) != (len(text.tokens), self.hidden_size):
                raise EngineError(
                    f"vLLM {self._vllm.__version__} gave hidden states of shape {tuple(states.shape)} for "
                    f"{len(text.tokens)} tokens of {self.hidden_size} dimensions. Use another version of vLLM, or the "
                    "default engine, for this model."
                )
            found.append(states)
        return found

    def _parts(self, texts: Sequence[_Text]) -> Iterator[list[_Text]]:
        """Split texts so that the hidden states of a part fit into STATE_BYTES; a text alone always goes."""
        most_tokens = STATE_BYTES // (4 * self.hidden_size)
        part: list[_Text] = []
        tokens = 0
        for text in texts:
            if part and tokens + len(text.tokens) > most_tokens:
                yield part
                part, tokens = [], 0
            part.append(text)
            tokens += len(text.tokens)
        if part:
            yield part

    def _check(self, requests: Sequence[RationaleRequest], sampling: SamplingOptions) -> None:
        """Refuse what vLLM would refuse, or shorten without a word."""
        if sampling.temperature > 2.0:
            raise InputError(f"temperature={sampling.temperature}: vLLM takes 0 (greedy) to 2.")
        most = self.max_model_len or self.context_length
        for index, request in enumerate(requests):
            rationale = request.max_new_tokens if request.rationale_ids is None else len(request.rationale_ids)
            if len(request.input_ids) + rationale > most:
                raise InputError(
                    f"Text {index} has {len(request.input_ids)} tokens with its prompt and a rationale of up to "
                    f"{rationale}, more than max_model_len={most}. Raise it, as far as the model's "
                    "positions go, or lower max_seq_length or max_new_tokens."
                )

    # ------------------------------------------------------------------ vLLM

    def _call(self, kind: Literal["generate", "pooling"], prompts: Sequence[tuple[int, ...]], params: Any) -> Any:
        """Have vLLM run prompts, given as token ids; its outputs come in the same order."""
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with self.lock:
            engine = self._engine(kind)
            self._counts["forward_passes"] += 1
            try:
                if kind == "generate":
                    return engine.generate(tokens, params, use_tqdm=False)
                return engine.encode(tokens, params, use_tqdm=False, pooling_task="token_embed")
            except BaseException as error:
                # Texts under way would stay in vLLM's queue and come out of the next call.
                self._stop(kind)
                if isinstance(error, Exception):
                    raise EngineError(f"vLLM failed over {len(tokens)} texts: {_describe(error)}") from error
                raise

    def _engine(self, kind: Literal["generate", "pooling"]) -> Any:
        """The engine of a kind, loaded if it is not."""
        if kind in self._engines:
            return self._engines[kind]
        if self.sequential:
            self.close()
        share = self.gpu_memory_utilization / (1 if self.sequential else 2)
        options: dict[str, Any] = {}
        if kind == "pooling":
            from vllm.config import PoolerConfig

            pooler = PoolerConfig(task="token_embed", tok_pooling_type="ALL", use_activation=False)
            options = {"convert": "embed", "pooler_config": pooler}
        logger.info("Loading %s into vLLM (%s), with %.2f of the memory.", self.model, kind, share)
        try:
            self._engines[kind] = self._vllm.LLM(
                self.model,
                runner=kind,  # vLLM would take a folder with modules.json for one to pool only
                dtype=self.dtype,
                gpu_memory_utilization=share,
                max_model_len=self.max_model_len,
                tensor_parallel_size=self.tensor_parallel_size,
                enforce_eager=self.enforce_eager,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                generation_config="vllm",  # nothing is read from the model's own
                enable_prefix_caching=kind == "generate",  # pooling needs the states of every token
                **options,
            )
        except Exception as error:
            raise EngineError(
                f"vLLM cannot load {self.model!r} ({kind}): {_describe(error)}. If memory is short: lower "
                f"max_model_len ({self.max_model_len or self.context_length}), change gpu_memory_utilization "
                f"({self.gpu_memory_utilization}, of which each engine takes {share:.2f}), or set sequential=True."
            ) from error
        return self._engines[kind]

    def _stop(self, kind: str) -> None:
        """Free the engine of a kind."""
        engine = self._engines.pop(kind, None)
        if engine is None:
            return
        try:
            engine.llm_engine.engine_core.shutdown()
        except Exception as error:
            logger.warning("vLLM did not shut down cleanly: %s", _describe(error))
        del engine
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Text:
    """A request whose rationale is there."""

    index: int
    request: RationaleRequest
    rationale: tuple[int, ...]
    reason: FinishReason

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and rationale."""
        return self.request.input_ids + self.rationale


def _import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        if error.name != "vllm":
            raise  # vLLM is there; something that it needs is not
        raise MissingExtraError("vllm", "vllm", "VLLMEngine") from error
    return vllm


def _read_config(model: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, Any, list[int]]:
    """Configuration and tokenizer of a model, and the tokens that end its rationales."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
        raise ModelLoadError(
            f"Cannot read configuration and tokenizer of {model!r}: {_describe(error)}. Give a folder or hub name that "
            "GraceEmbedder loads."
        ) from error
    try:
        generation = GenerationConfig.from_pretrained(model, revision=revision or "main")
    except OSError:  # a model need not have one
        generation = None
    policy = SimpleNamespace(config=config, generation_config=generation)
    return config, tokenizer, find_end_tokens(cast("PreTrainedModel", policy), tokenizer)


def _default_dtype(saved: torch.dtype | str | None) -> str:
    if not torch.cuda.is_available() or saved is None:
        return "float32"
    return str(saved).removeprefix("torch.")


def _seed(sampling: SamplingOptions, request: RationaleRequest) -> int:
    """Seed of a text's own random stream, made from the run's seed, the prompt and the number of the sample alone."""
    numbers = [sampling.seed, *([request.sample] if request.sample else [])]
    digest = hashlib.blake2b(np.asarray(numbers, dtype="<u8").tobytes(), digest_size=8)
    digest.update(np.asarray(request.input_ids, dtype="<u4").tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".removesuffix(": ")
