"""Rollouts: rationales written by the policy as it is now, with their pooled vectors, in one pass.

The embedder's own engine writes them, so a rollout's vector is the one that inference would give, and costs no forward
pass of its own. Random numbers depend on seed, text and sample alone: every process that meets a text writes the
same rationale about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grace_retrieval import GraceEmbedder, Rationale, RationaleRequest, SamplingOptions
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.loading import end_tokens

__all__ = ["PolicyWriter", "Role", "Rollout", "pooled_completions"]

Role = Literal["query", "document"]


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


class PolicyWriter:
    """Renders texts as the embedder does and has the policy write about them.

    Args:
        embedder: The embedder that is trained.
        max_new_tokens: Most tokens of a rationale.
    """

    def __init__(self, embedder: GraceEmbedder, max_new_tokens: int) -> None:
        self.embedder = embedder
        self.max_new_tokens = max_new_tokens
        pipeline = embedder.pipeline
        self.engine = TransformersEngine(
            pipeline.module,
            end_tokens=end_tokens(pipeline.module, pipeline.tokenizer),
            max_batch_tokens=pipeline.source.max_batch_tokens,
        )

    def render(self, texts: Sequence[str], role: Role) -> tuple[list[tuple[int, ...]], int, int]:
        """Tokenise texts inside the role's prompt.

        Args:
            texts: Texts.
            role: Whose prompt they get.

        Returns:
            Token ids of each prompt, the length of the system prefix, and how many texts had to be shortened.
        """
        prompt = self.embedder.writer.prompt(self.embedder.prompts.get(role))
        rendered = prompt.render(texts, max_length=self.embedder.writer.max_seq_length)
        return (
            [text.input_ids for text in rendered],
            len(prompt.prefix_ids),
            sum(text.truncated for text in rendered),
        )

    def write(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        temperature: float,
        seed: int,
        samples: Sequence[int] | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[Rollout]:
        """Have one rationale written for every text.

        Args:
            texts: Texts; repeats are written about once for each different sample.
            role: Whose prompt they get.
            temperature: 0 is greedy.
            seed: Seed of the random numbers.
            samples: Number of the sample of every text; None is 0 for all.
            top_p: As in SamplingOptions.
            top_k: As in SamplingOptions.

        Returns:
            One Rollout a text.
        """
        if not texts:
            return []
        samples = [0] * len(texts) if samples is None else list(samples)
        unique = list(dict.fromkeys(zip(texts, samples, strict=True)))
        prompts, prefix_length, _ = self.render([text for text, _ in unique], role)
        requests = [
            RationaleRequest(
                input_ids=ids, prefix_length=prefix_length, max_new_tokens=self.max_new_tokens, sample=sample
            )
            for ids, (_, sample) in zip(prompts, unique, strict=True)
        ]
        sampling = SamplingOptions(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        outputs = dict(self.engine.run(requests, sampling))
        written = {
            key: Rollout(
                prompt_ids=request.input_ids,
                prefix_length=prefix_length,
                rationale_ids=outputs[place].token_ids,
                end_token=outputs[place].end_token,
                vector=outputs[place].vector,
            )
            for place, (key, request) in enumerate(zip(unique, requests, strict=True))
        }
        return [written[key] for key in zip(texts, samples, strict=True)]


@torch.no_grad()
def pooled_completions(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prefix_lengths: Sequence[int],
    *,
    end_tokens: Collection[int],
    pool: Callable[[Sequence[Rollout]], Tensor],
    batch_size: int,
) -> list[Rollout]:
    """Rollouts of rationales that another engine wrote, with vectors by forward passes of their own.

    Args:
        prompts: Token ids of system prefix, text and turn.
        completions: Token ids that were written, with the end token if there is one.
        prefix_lengths: Number of leading tokens of each prompt that are the system prefix.
        end_tokens: Tokens that end a rationale.
        pool: Gives the vectors of rollouts with one system prefix, (rollouts, d).
        batch_size: Most rollouts of a forward pass.

    Returns:
        One Rollout a completion.
    """
    rollouts = []
    for prompt, completion, prefix_length in zip(prompts, completions, prefix_lengths, strict=True):
        end = completion[-1] if completion and completion[-1] in end_tokens else None
        rollouts.append(
            Rollout(
                prompt_ids=tuple(prompt),
                prefix_length=prefix_length,
                rationale_ids=tuple(completion if end is None else completion[:-1]),
                end_token=end,
                vector=np.zeros(0, dtype=np.float32),
            )
        )
    for prefix_length in set(prefix_lengths):
        places = [place for place, found in enumerate(prefix_lengths) if found == prefix_length]
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            for place, vector in zip(part, pool([rollouts[place] for place in part]).cpu().numpy(), strict=True):
                rollouts[place] = replace(rollouts[place], vector=vector)
    return rollouts
