"""The library as a user writes it. Never run: `mypy` reads it, the way an editor would (see pyproject.toml)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer
from typing_extensions import assert_type

from grace_retrieval import (
    DEFAULT_PROMPT,
    CachedRationale,
    CacheWarning,
    EngineError,
    Explanation,
    Fingerprint,
    GraceEmbedder,
    GraceError,
    GraceIndex,
    InputError,
    MemoryCache,
    MissingExtraError,
    ModelLoadError,
    Rationale,
    RationaleCache,
    RationaleEngine,
    RationaleOutput,
    RationalePrompt,
    RationaleRequest,
    SamplingOptions,
    SearchResult,
    SQLiteCache,
    TruncationWarning,
    VectorIdentity,
    __version__,
    open_cache,
    register,
    shared_embedder,
    unload_embedders,
)
from langchain_grace import GraceEmbeddings
from llama_index.embeddings.grace import GraceEmbedding


def embed() -> None:
    embedder = GraceEmbedder()
    named = GraceEmbedder("Qwen/Qwen2.5-1.5B-Instruct", device="cuda", max_new_tokens=256, cache="memory")
    local = GraceEmbedder(
        Path("models") / "policy",
        system_prompt="Say what it is.",
        cache=MemoryCache(max_bytes=1_000_000),
        temperature=0.7,
        top_p=0.9,
        top_k=50,
        seed=1,
        on_truncation="error",
        truncate_dim=128,
        model_kwargs={"dtype": "bfloat16"},
    )
    stock: SentenceTransformer = embedder
    stock.encode(["a text"])
    embedder.encode("a text")
    named.encode(["a text", "another"], rationales=["On a text.", "On another."], batch_size=8, precision="int8")
    local.encode_query("a question", rationale=False)
    embedder.encode_document(("a text",), rationales="A rationale.", convert_to_tensor=True)
    assert_type(embedder.embed_documents(["a text"]), list[list[float]])
    assert_type(embedder.embed_query("a question"), list[float])
    assert_type(embedder.cache, RationaleCache | None)
    assert_type(embedder.fingerprint("query"), Fingerprint)
    assert_type(embedder.writer.engine, RationaleEngine)
    embedder.writer.configure(max_new_tokens=64, temperature=0.0)
    embedder.writer.on_truncation = "ignore"
    embedder.max_seq_length = 512

    embedder.fingerprint("passage")  # type: ignore[arg-type]
    GraceEmbedder(on_truncation="explode")  # type: ignore[arg-type]
    embedder.rationales(5)  # type: ignore[arg-type]


async def embed_without_blocking(embedder: GraceEmbedder) -> None:
    assert_type(await embedder.aembed_documents(["a text"]), list[list[float]])
    assert_type(await embedder.aembed_query("a question"), list[float])


def explain(embedder: GraceEmbedder) -> str:
    rationales = embedder.rationales(["a text"], role="document")
    assert_type(rationales, list[Rationale])
    rationale = embedder.rationales("a question", "query")[0]
    assert_type(rationale.token_ids, tuple[int, ...])
    assert_type(rationale.truncated, bool)
    embedder.encode(["a text"], rationales=rationales)
    rationale.text = "read-only"  # type: ignore[misc]
    explanation = embedder.explain("a question", "a text", document_rationales=rationale, truncate_dim=64)
    assert_type(explanation, Explanation)
    assert_type(embedder.explain("a question", ["a text", "another"], rationale=False), list[Explanation])
    assert_type(explanation.document.contributions, npt.NDArray[np.float64])
    assert_type(explanation.to_html(page=False), str)
    embedder.explain("a question", "a text", truncate_dim="64")  # type: ignore[call-overload]
    return rationale.reasoning + rationale.summary + str(rationale)


def keep() -> None:
    cache = open_cache("default", max_bytes=1 << 30)
    assert_type(cache, RationaleCache | None)
    if cache is not None:
        for key, digest, row, created in cache.rows():
            assert_type(key, bytes)
            assert_type(digest, bytes)
            assert_type(row, CachedRationale)
            assert_type(created, float)
        assert_type(cache.stats().rows, int)
        assert_type(cache.verify().ok, bool)
    with SQLiteCache(Path("cache.sqlite")) as file:
        GraceEmbedder(cache=file)
        GraceEmbedder(cache=Path("cache"))
    GraceEmbedder(cache=5)  # type: ignore[arg-type]


class EchoEngine:
    """An engine of a user's own: the protocol is structural, so nothing is imported to inherit from."""

    @property
    def family(self) -> str:
        return "echo"

    @property
    def dtype(self) -> str:
        return "float32"

    def run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
    ) -> Iterator[tuple[int, RationaleOutput]]:
        for index, request in enumerate(requests):
            vector = np.zeros(8, dtype=np.float32)
            yield index, RationaleOutput(token_ids=request.input_ids[-1:], finish_reason="stop", vector=vector)

    def statistics(self) -> Mapping[str, int]:
        return {"texts": 0}


def use_an_engine(embedder: GraceEmbedder) -> None:
    engine: RationaleEngine = EchoEngine()
    embedder.writer.engine = engine
    request = RationaleRequest(input_ids=(1, 2, 3), prefix_length=1, max_new_tokens=8)
    for index, output in engine.run([request], SamplingOptions(temperature=1.0, seed=3)):
        assert_type(index, int)
        assert_type(output.vector, npt.NDArray[np.float32])
    RationalePrompt(embedder.tokenizer, DEFAULT_PROMPT).render(["a text"], max_length=100)
    RationaleRequest((1, 2, 3), 1)  # type: ignore[call-arg]
    RationaleOutput(token_ids=(), finish_reason="tired", vector=np.zeros(8, np.float32))  # type: ignore[arg-type]


def handle() -> str:
    try:
        GraceEmbedder("missing")
    except MissingExtraError as error:
        return error.extra
    except (ModelLoadError, InputError, EngineError) as error:
        assert_type(error, ModelLoadError | InputError | EngineError)
        base: GraceError = error
        return str(base)
    warnings: tuple[type[UserWarning], ...] = (TruncationWarning, CacheWarning)
    assert_type(__version__, str)
    return f"{warnings}"


def use_other_frameworks(embedder: GraceEmbedder) -> None:
    register()
    register(cache=None)
    assert_type(shared_embedder("grace-nano", device="cpu"), GraceEmbedder)
    unload_embedders()
    embeddings = GraceEmbeddings(
        model="grace-nano", system_prompt="Say what it is.", identity_file="store/identity.json"
    )
    assert_type(embeddings.embed_query("a question"), list[float])
    assert_type(embeddings.as_byte_store().mget(["key"]), list[bytes | None])
    GraceEmbeddings(model=embedder)
    GraceEmbedding(model_name="grace-nano", embed_batch_size=64, truncate_dim=128)
    GraceEmbedding(model_name=embedder)
    embedder.vector_identity().write(Path("store") / "identity.json")
    assert_type(VectorIdentity.read("store/identity.json"), VectorIdentity)
    assert_type(embedder.cached_rationales(["a text"], "document"), list[Rationale | None])

    GraceEmbeddings(model=5)  # type: ignore[arg-type]
    GraceEmbeddings(sytem_prompt="misspelt")  # type: ignore[call-arg]


def index() -> None:
    from grace_retrieval.indexing import BuildOptions, Columns, Corpus, FaissOptions, build_index, delete_documents

    documents = Corpus(["corpus.jsonl"], columns=Columns(title="title")).documents()
    options = BuildOptions(shard_rows=512, faiss=FaissOptions(factory="HNSW32,SQ8"))
    summary = build_index(documents, Path("index"), embedder=GraceEmbedder(), options=options, mode="update")
    assert_type(summary.manifest.rows, int)
    with GraceIndex.open("index") as opened:
        assert_type(opened.search("a query"), SearchResult)
        found = opened.search(["a query", "another"], k=3, filter={"lang": ["en", "de"]}, hybrid=True)
        assert_type(found, list[SearchResult])
        assert_type(found[0].ids, list[str])
        assert_type(found[0].hits[0].rationale, Rationale)
        assert_type(opened.search_vectors(np.ones(256), filter=lambda metadata: bool(metadata)), list[SearchResult])
        opened.as_langchain().as_retriever()
    delete_documents("index", ["a"], missing="skip")
