"""What the classes for other frameworks have in common: a configuration that loads its embedder when first used.

Needs pydantic, which every one of these frameworks brings along; nothing else of the package imports this module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from grace_retrieval.batching import MicroBatcher
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.description import describe_options
from grace_retrieval.errors import InputError
from grace_retrieval.registry import shared_embedder
from grace_retrieval.spellings import translated
from grace_retrieval.vector_identity import VectorIdentity

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Self

    from grace_retrieval.embedder import GraceEmbedder, Role

    Model: TypeAlias = str | GraceEmbedder
else:
    Model = str  # a live embedder is kept beside, under its name

__all__ = ["EmbedderOptions", "EmbedderSettings", "Model"]


class _Slot:
    """What belongs to a process and not to the configuration; copies and pickles of it are empty.

    Args:
        values: The configuration it belongs to, so that a changed one starts anew.
    """

    def __init__(self, values: str = "") -> None:
        self.values = values
        self.embedder: GraceEmbedder | None = None
        self.ready: set[str] = set()
        self.batcher = MicroBatcher()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Slot)  # configurations are equal by their fields

    def __reduce__(self) -> tuple[type[_Slot], tuple[()]]:
        return (_Slot, ())


class EmbedderOptions(BaseModel):
    """Everything that says how texts are embedded, but the name of the model.

    The embedder is loaded when it is first needed, once in a process for each configuration. Copies, pickles and dumps
    hold the configuration alone.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    system_prompt: str | None = Field(
        default=None, description="One prompt for all texts; None keeps the model's prompts."
    )
    prompts: dict[str, str] | None = Field(default=None, description='System prompts by role: "query" and "document".')
    rationale: bool | Literal["echo"] | None = Field(
        default=None,
        description='False embeds texts alone, "echo" each text twice; None keeps the model\'s setting.',
    )
    max_new_tokens: int | None = Field(
        default=None, description="Most tokens of a rationale; None keeps the model's setting."
    )
    max_seq_length: int | None = Field(
        default=None, description="Most tokens of a prompt with its text; None as above."
    )
    temperature: float | None = Field(default=None, description="0 is greedy; None keeps the model's setting.")
    top_p: float | None = Field(default=None, description="Nucleus of the sampling; None keeps the model's setting.")
    top_k: int | None = Field(default=None, description="Most probable tokens kept; None keeps the model's setting.")
    seed: int | None = Field(default=None, description="Seed of the sampling; None keeps the model's setting.")
    stop_repeats: bool | None = Field(
        default=None, description="Whether rationales that go in circles are ended; None keeps the model's setting."
    )
    max_sentences: int | None = Field(
        default=None,
        strict=True,
        description="Most sentences of a rationale beside its reasoning, 0 for any; None keeps the model's setting.",
    )
    centring: dict[str, Any] | None = Field(
        default=None, description="`Centring.describe()`: what is taken away from all vectors; None is the model's own."
    )
    truncate_dim: int | None = Field(default=None, gt=0, description="Dimensions to keep; None keeps all.")
    model_kwargs: dict[str, Any] | None = Field(
        default=None, description='For transformers, such as {"dtype": "bfloat16"}.'
    )
    revision: str | None = Field(default=None, description="Revision of a model on the hub.")
    engine: str = Field(default="transformers", description="What runs the policy, by name: transformers, vllm, ...")
    engine_options: dict[str, Any] | None = Field(default=None, description="Options of the engine; JSON values.")
    device: str | None = Field(default=None, description='Such as "cuda" or "cpu"; None takes the best there is.')
    cache: str | None = Field(default="default", description='"default", a path, "memory", or None for no cache.')
    on_truncation: Literal["warn", "error", "ignore"] = Field(
        default="warn", description="What to do about long texts."
    )
    max_batch_tokens: int | None = Field(
        default=None, gt=0, description="Most tokens of a batch; None goes by the memory."
    )
    local_files_only: bool | None = Field(default=None, description="Whether to keep off the network.")
    cache_folder: str | None = Field(default=None, description="Where models of the hub are kept; None: as usual.")
    show_progress: bool | None = Field(
        default=None, description="Whether to show progress; None shows it on a terminal for 100 texts or more."
    )
    identity_file: str | None = Field(
        default=None,
        description="A file beside the vector store. The first documents write into it what they are embedded with; "
        "from then on, vectors of another model, prompt or dimension are refused.",
    )
    identity: dict[str, Any] | None = Field(
        default=None, description="`VectorIdentity.describe()` of the vectors that are expected; others are refused."
    )

    MODEL_FIELD: ClassVar[str] = "model"
    _slot: _Slot = PrivateAttr(default_factory=_Slot)

    @model_validator(mode="wrap")
    @classmethod
    def _accept_embedder(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take a live GraceEmbedder in place of a model's name."""
        if isinstance(data, dict):
            data = translated(data, cls.MODEL_FIELD, cls.model_fields)
        live = data.get(cls.MODEL_FIELD) if isinstance(data, dict) else None
        if live is None or isinstance(live, str):
            return handler(data)
        module = sys.modules.get("grace_retrieval.embedder")
        if module is None or not isinstance(live, module.GraceEmbedder):
            raise InputError(
                f"{cls.MODEL_FIELD} is {type(live).__name__}: give the name or folder of a model, or a GraceEmbedder."
            )
        settings = handler({**_options_of(live), **data, cls.MODEL_FIELD: live.pipeline.name})
        slot = settings._current()
        slot.embedder = live
        if "identity" not in data and settings.identity_file is None:
            slot.ready |= {"query", "document"}  # it is what it is; its copies are compared with it
        return settings

    @property
    def embedder(self) -> GraceEmbedder:
        """The embedder, loaded when first asked for."""
        slot = self._current()
        if slot.embedder is None:
            options = {name: getattr(self, name) for name in EmbedderOptions.model_fields}
            for name in ("identity_file", "identity", "show_progress"):
                del options[name]
            slot.embedder = shared_embedder(getattr(self, self.MODEL_FIELD), **options)
        return slot.embedder

    def vector_identity(self) -> VectorIdentity:
        """What the vectors are made with."""
        return self.embedder.vector_identity()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts as documents: one vector a text, of length 1 (zeros for a blank text).

        Raises:
            InputError: If `texts` is no list of strings.
            ModelMismatchError: If the vectors would not go with those of `identity_file` or `identity`.
        """
        embedder = self._ready("document")
        if self.show_progress is None:
            return embedder.embed_documents(texts)
        from grace_retrieval.inputs import read_texts  # which loads torch

        found = embedder.encode_document(read_texts(texts), show_progress_bar=self.show_progress)
        vectors: list[list[float]] = found.tolist()
        return vectors

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """Embed texts as queries. Raises what `embed_documents` does."""
        return self._ready("query").embed_queries(texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a text as a query: a vector of length 1. Raises what `embed_documents` does."""
        return self._ready("query").embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, off the event loop and together with other requests that wait."""
        return await (await self._aready("document")).aembed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, off the event loop and together with other requests that wait."""
        return await (await self._aready("query")).aembed_query(text)

    def rationale_texts(self, documents: Sequence[str]) -> list[str | None]:
        """The rationales of documents that were embedded before, from the cache; None where it has none."""
        found = self.embedder.cached_rationales(documents, "document")
        return [None if rationale is None else rationale.text for rationale in found]

    def _current(self) -> _Slot:
        """The slot of the configuration as it is now."""
        values = repr([getattr(self, name) for name in (self.MODEL_FIELD, *EmbedderOptions.model_fields)])
        if self._slot.values != values:
            self._slot = _Slot(values)
        return self._slot

    def _ready(self, role: Role) -> GraceEmbedder:
        """The embedder, once its vectors are known to go with those in the store."""
        embedder, slot = self.embedder, self._current()
        if role not in slot.ready:
            if self.identity is not None:
                stored = VectorIdentity.from_description(self.identity)
                embedder.vector_identity().require(stored, "This configuration's vector store")
            if self.identity_file is not None and role == "document":
                embedder.vector_identity().write(self.identity_file)
            elif self.identity_file is not None:
                embedder.vector_identity().require(VectorIdentity.read(self.identity_file), self.identity_file)
            slot.ready.add(role)
        return embedder

    async def _aready(self, role: Role) -> GraceEmbedder:
        """As `_ready`; loading is done on a thread, once for all who wait."""
        slot = self._current()
        unguarded = self.identity is None and self.identity_file is None
        if role in slot.ready or (slot.embedder is not None and unguarded):
            return self._ready(role)
        return (await slot.batcher.run(self._ready_all, [role]))[0]

    def _ready_all(self, roles: list[str]) -> list[GraceEmbedder]:
        return [self._ready("query" if role == "query" else "document") for role in roles]


class EmbedderSettings(EmbedderOptions):
    """A whole configuration: the name of the model, and the options.

    Example:
        >>> settings = EmbedderSettings(model="grace-nano", cache=None)
        >>> len(settings.embed_query("Why do tides follow the moon?"))
        256
    """

    model: Model = Field(default=DEFAULT_MODEL, description="Bundled model, folder, hub name, or a live GraceEmbedder.")

    @classmethod
    def of(cls, embedder: GraceEmbedder) -> Self:
        """The configuration of a live embedder: copies, pickles and dumps of it load one with the same identity."""
        return cls(model=embedder)

    def load(self) -> None:
        """Load the embedder now instead of at the first text."""
        _ = self.embedder

    def split(self) -> dict[str, Any]:
        """The arguments `model` and `options` of classes that take these two; options left alone are left out."""
        return {"model": self.model, "options": self.model_dump(exclude={"model"}, exclude_defaults=True)}


def _options_of(embedder: GraceEmbedder) -> dict[str, Any]:
    """Options that load the same embedder again, with its identity, in case the name does not say everything."""
    pipeline = embedder.pipeline
    path = getattr(pipeline.cache, "path", None)
    described = describe_options(embedder)
    return {
        **described,
        "prompts": {name: prompt for name, prompt in described["prompts"].items() if prompt is not None},
        "rationale": pipeline.options.rationale,
        "model_kwargs": {"dtype": pipeline.policy.dtype},
        "cache": None if pipeline.cache is None else str(path) if path else "memory",
        "on_truncation": pipeline.options.on_truncation,
        "max_batch_tokens": pipeline.source.max_batch_tokens,
        "identity": embedder.vector_identity().describe(),
    }
