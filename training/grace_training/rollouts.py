"""Rollouts: rationales written by the policy as it is now, with their pooled vectors, in one pass.

The embedder's own pipeline writes them, past the cache, so a rollout's vector is the one that inference would give, and
costs no forward pass of its own. Random numbers depend on seed, text and sample alone: every process that meets a text
writes the same rationale about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grace_retrieval import GraceEmbedder, Rationale, SamplingOptions
from grace_retrieval.prompt import RenderedText
from grace_retrieval.rows import Role

__all__ = ["GivenText", "PolicyWriter", "Role", "Rollout", "pooled_completions", "write_others"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """A text with one rationale.

    Attributes:
        prompt_ids: System prefix, text and turn tokens.
        prefix_length: Number of leading tokens that are the system prefix.
        rationale_ids: The rationale, without end token.
        end_token: The token that ended it; None if the token budget did.
        vector: Mean of the hidden states, not normalised. Shape: (d,), float32.
    """

    prompt_ids: tuple[int, ...]
    prefix_length: int
    rationale_ids: tuple[int, ...]
    end_token: int | None
    vector: npt.NDArray[np.float32]

    @property
    def truncated(self) -> bool:
        """Whether the rationale hit the token budget."""
        return self.end_token is None

    @property
    def completion_ids(self) -> list[int]:
        """What the policy chose, token by token, the end token included."""
        return [*self.rationale_ids, *([] if self.end_token is None else [self.end_token])]

    def as_rationale(self, decode: Callable[[Sequence[int]], str]) -> Rationale:
        """The rationale as the embedder shows it.

        Args:
            decode: Token ids to text.
        """
        return Rationale(
            text=decode(self.rationale_ids),
            token_ids=self.rationale_ids,
            truncated=self.truncated,
            text_truncated=False,
        )

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and rationale, as they are pooled."""
        return self.prompt_ids + self.rationale_ids


class GivenText(NamedTuple):
    """A text as the data gives it.

    Attributes:
        role: Whose prompt it gets.
        text: The text.
        rationale: What the data says about it; None: nothing.
    """

    role: Role
    text: str
    rationale: str | None = None


class PolicyWriter:
    """Has the policy of an embedder write rollouts.

    Args:
        embedder: The embedder that is trained.
        max_new_tokens: Most tokens of a rationale.
    """

    def __init__(self, embedder: GraceEmbedder, max_new_tokens: int) -> None:
        self.embedder = embedder
        self.max_new_tokens = max_new_tokens

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a rationale."""
        return self.embedder.pipeline.policy.end_tokens

    def render(self, texts: Sequence[str], role: Role) -> list[RenderedText]:
        """Tokenise texts inside the role's prompt; long ones are shortened without a word.

        Args:
            texts: Texts.
            role: Whose prompt they get.
        """
        pipeline = self.embedder.pipeline
        prompt = pipeline.prompt(self.embedder.prompts.get(role))
        return prompt.render(texts, max_length=pipeline.options.max_seq_length)

    def completions(self, rationales: Sequence[str | None]) -> list[list[int]]:
        """Given rationales as the policy would have written them: token by token, with the token that ends them.

        Args:
            rationales: Texts; None has no tokens.

        Returns:
            Token ids. Those of a rationale beyond `max_new_tokens` are cut, and then nothing ends it.
        """
        pipeline = self.embedder.pipeline
        usual = pipeline.tokenizer.eos_token_id
        end = usual if usual in self.end_tokens else min(self.end_tokens)
        given = [rationale for rationale in rationales if rationale is not None]
        tokens = iter(pipeline.prompt(None).rationale_ids(given) if given else ())
        found = [[] if rationale is None else [*next(tokens), end] for rationale in rationales]
        return [ids[: self.max_new_tokens] for ids in found]

    def write(
        self,
        rendered: Sequence[RenderedText],
        *,
        temperature: float,
        seed: int,
        samples: Sequence[int] | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[Rollout]:
        """Have one rationale written for every text.

        Args:
            rendered: Texts of one role, from `render`; repeats are written about once for each different sample.
            temperature: 0 is greedy.
            seed: Seed of the random numbers.
            samples: Number of the sample of every text; None is 0 for all.
            top_p: As in SamplingOptions.
            top_k: As in SamplingOptions.

        Returns:
            One Rollout a text.
        """
        rows = self.embedder.pipeline.write(
            rendered,
            rationale=True,
            sampling=SamplingOptions(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
            max_new_tokens=self.max_new_tokens,
            samples=[0] * len(rendered) if samples is None else samples,
        )
        return [
            Rollout(
                prompt_ids=row.prompt.input_ids,
                prefix_length=row.prompt.prefix_length,
                rationale_ids=row.token_ids,
                end_token=row.end_token,
                vector=row.vector,
            )
            for row in rows
        ]


def write_others(
    writer: PolicyWriter, rows: Sequence[Mapping[str, Any]], *, temperature: float, seed: int, sample: int
) -> tuple[list[Rollout], list[Rollout] | None]:
    """Have one rationale written for what each row is compared with.

    Args:
        writer: Writes.
        rows: Rows of the data set with "other", "other_role" and "negative".
        temperature: Temperature of these rationales.
        seed: Seed of the batch.
        sample: A sample that no rollout has, so that a text and its own rollout draw other random numbers.

    Returns:
        One Rollout a row, and one for each negative, or None if the rows have none.
    """
    written: dict[tuple[str, str], Rollout] = {}
    wanted: dict[Role, list[str]] = {"query": [], "document": []}
    for row in rows:
        wanted[row["other_role"]].append(row["other"])
        if row.get("negative") is not None:
            wanted["document"].append(row["negative"])
    for role, texts in wanted.items():
        unique = list(dict.fromkeys(texts))
        rendered = writer.render(unique, role)
        found = writer.write(rendered, temperature=temperature, seed=seed, samples=[sample] * len(unique))
        written |= {(role, text): rollout for text, rollout in zip(unique, found, strict=True)}
    others = [written[row["other_role"], row["other"]] for row in rows]
    if any(row.get("negative") is None for row in rows):
        return others, None
    return others, [written["document", row["negative"]] for row in rows]


@torch.no_grad()
def pooled_completions(
    prompts: Sequence[RenderedText],
    completions: Sequence[Sequence[int]],
    *,
    end_tokens: Collection[int],
    pool: Callable[[Sequence[Rollout]], Tensor],
    batch_size: int,
) -> list[Rollout]:
    """Rollouts of rationales that another engine wrote, with vectors by forward passes of their own.

    Args:
        prompts: Texts as the engine was shown them.
        completions: Token ids that were written, with the end token if there is one.
        end_tokens: Tokens that end a rationale.
        pool: Gives the vectors of rollouts with one system prefix, (rollouts, d).
        batch_size: Most rollouts of a forward pass.

    Returns:
        One Rollout a completion.
    """
    rollouts = []
    for prompt, completion in zip(prompts, completions, strict=True):
        end = completion[-1] if completion and completion[-1] in end_tokens else None
        rollouts.append(
            Rollout(
                prompt_ids=prompt.input_ids,
                prefix_length=prompt.prefix_length,
                rationale_ids=tuple(completion if end is None else completion[:-1]),
                end_token=end,
                vector=np.zeros(0, dtype=np.float32),
            )
        )
    for prefix_length in {rollout.prefix_length for rollout in rollouts}:
        places = [place for place, rollout in enumerate(rollouts) if rollout.prefix_length == prefix_length]
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            for place, vector in zip(part, pool([rollouts[place] for place in part]).cpu().numpy(), strict=True):
                rollouts[place] = replace(rollouts[place], vector=vector)
    return rollouts
