"""What a search finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.document import join_title, key_beside
from grace_retrieval.rationale import Rationale

__all__ = ["Hit", "SearchResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A document that was found.

    Attributes:
        id: Id of the document.
        score: Cosine of query and document, from the stored vectors; in a hybrid search the fused score.
        text: The text, without its title.
        title: The title, if there is one.
        metadata: The other columns of the input.
        rationale: What the model wrote about the document; empty if the index was built without rationales.
    """

    id: str
    score: float
    text: str
    title: str | None
    metadata: dict[str, Any]
    rationale: Rationale

    @property
    def embedded_text(self) -> str:
        """What the embedder was shown: the title, a blank line and the text."""
        return join_title(self.title, self.text)

    def beside_metadata(self, names: Iterable[str]) -> dict[str, Any]:
        """Title, rationale and score for those who keep them in one place with the metadata.

        A name that the corpus has, too, is its own: ours is then `grace_` and the name.

        Args:
            names: Which of "title", "rationale" and "score".
        """
        ours = {"title": self.title, "rationale": self.rationale.text, "score": self.score}
        return {
            key_beside(self.metadata, name): ours[name]
            for name in names
            if name not in self.metadata or ours[name] is not None
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was found for one query, best first.

    Attributes:
        query: The query; "" if it was given as a vector.
        hits: The documents that were found; fewer than k if the index has no more.
    """

    query: str
    hits: tuple[Hit, ...]

    @property
    def ids(self) -> list[str]:
        """Ids of the documents."""
        return [hit.id for hit in self.hits]

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Scores, falling. Shape: (hits,), float32."""
        return np.array([hit.score for hit in self.hits], dtype=np.float32)

    @property
    def documents(self) -> list[str]:
        """Texts of the documents."""
        return [hit.text for hit in self.hits]

    @property
    def rationales(self) -> list[Rationale]:
        """What the model wrote about the documents."""
        return [hit.rationale for hit in self.hits]
