"""Forward passes in which the rollouts of a text share the tokens of its prompt.

GRPO runs every rollout with its whole prompt, so a long text with n short rationales is paid for n times. Attention is
causal: the states of the prompt do not depend on what follows it. Here the prompt is run once and the rollouts branch
off behind it, as in a tree, in one flat sequence of tokens without padding:

    prompt without its last token | last token, rationale 1 | last token, rationale 2 | next prompt ...

The last token of the prompt is repeated because it predicts the first token of every rationale. Log-probabilities,
states and gradients equal those of separate rows; only attention has to know what a token may see.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from grace_retrieval.engines.ragged import (
    UnsupportedAttentionError,
    attention_implementation,
    refuse_unsupported,
)
from grace_training.pooling import pool_sequences

__all__ = ["PackedBatch", "can_pack", "packed_implementation", "pool_packed", "score_packed"]

IMPLEMENTATION = "grace_packed"
logger = logging.getLogger(__name__)


class PackedBatch:
    """Prompts with their rationales as one flat sequence.

    Args:
        prompts: Token ids of the prompt of every rollout; equal prompts are run once. None may be empty.
        completions: Token ids behind each prompt.
        device: Device of the model.

    Attributes:
        tokens: Shape: (tokens,), int64.
        positions: Position of each token in its own text. Shape: (tokens,), int64.
        predictors: Place of the token that predicts each token of the completions, in their order. Shape: (Σ lengths,).
        targets: The tokens of the completions. Shape: (Σ lengths,).
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, device: torch.device
    ) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        for rollout, prompt in enumerate(prompts):
            groups.setdefault(tuple(prompt), []).append(rollout)
        tokens: list[int] = []
        positions: list[int] = []
        branches: list[int] = []  # of its group; 0 is the prompt
        lengths: list[int] = []  # of the groups
        self._prompt_start = [0] * len(prompts)
        self._branch_start = [0] * len(prompts)
        self._prompt_length = [len(prompt) for prompt in prompts]
        for prompt, rollouts in groups.items():
            start, shared = len(tokens), len(prompt) - 1
            tokens += prompt[:-1]
            positions += range(shared)
            branches += [0] * shared
            for branch, rollout in enumerate(rollouts, 1):
                self._prompt_start[rollout], self._branch_start[rollout] = start, len(tokens)
                tokens += [prompt[-1], *completions[rollout]]
                positions += range(shared, shared + 1 + len(completions[rollout]))
                branches += [branch] * (1 + len(completions[rollout]))
            lengths.append(len(tokens) - start)
        self.tokens = torch.tensor(tokens, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.predictors = torch.tensor(
            [
                self._branch_start[rollout] + step
                for rollout, completion in enumerate(completions)
                for step in range(len(completion))
            ],
            dtype=torch.long,
            device=device,
        )
        self.targets = torch.tensor(
            [token for completion in completions for token in completion], dtype=torch.long, device=device
        )
        count = torch.tensor(lengths)
        step = torch.arange(int(count.max()))
        valid = step < count[:, None]
        self._valid = valid.to(device)  # (groups, width)
        self._places = valid.flatten().nonzero()[:, 0].to(device)  # of each token among the padded ones
        self._branches = self.pad(torch.tensor(branches, device=device))
        self._masks: dict[int | None, Tensor] = {}

    def pad(self, flat: Tensor) -> Tensor:
        """Give each group a row of its own, with zeros behind it. Shapes: (tokens, …) → (groups, width, …).

        Tokens are copied to where they belong. To fetch them instead, with some token or other as padding, has the same
        result, but its gradient adds up what all padded places hand back to that token: on a GPU one after the other.
        """
        groups, width = self._valid.shape
        padded = flat.new_zeros(groups * width, *flat.shape[1:]).index_copy(0, self._places, flat)
        return padded.view(groups, width, *flat.shape[1:])

    def flatten(self, padded: Tensor) -> Tensor:
        """The tokens again, without padding. Shapes: (groups, width, …) → (tokens, …)."""
        return padded.flatten(0, 1).index_select(0, self._places)

    def predict(self, chosen: Sequence[tuple[int, int]], targets: Tensor) -> None:
        """Predict tokens of the prompts instead of the completions.

        Args:
            chosen: Rollout and place in its prompt of each token, which must not be the first.
            targets: The tokens. Shape: (chosen,).
        """
        self.targets = targets
        self.predictors = torch.tensor(
            [self._prompt_start[rollout] + place - 1 for rollout, place in chosen], device=self.tokens.device
        )

    def mask(self, window: int | None) -> Tensor:
        """Which token sees which: its own prompt and rationale up to itself. Shape: (groups, 1, width, width), bool."""
        if window not in self._masks:
            position, branch = self.pad(self.positions), self._branches
            distance = position[:, :, None] - position[:, None, :]
            seen = (distance >= 0) & ((branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :]))
            if window is not None:
                seen &= distance < window
            # A padded query sees everything, as a softmax over nothing is NaN; what it gives is dropped.
            self._masks[window] = (seen & self._valid[:, None, :] | ~self._valid[:, :, None])[:, None]
        return self._masks[window]

    def pooling_weights(self, prefix_lengths: Sequence[int], rationale_lengths: Sequence[int]) -> Tensor:
        """Weights that give the mean over a rollout's text and rationale (h in docs/architecture.md).

        Args:
            prefix_lengths: Leading tokens of each prompt that do not count.
            rationale_lengths: Tokens of each completion that do, from its start; an end token does not.

        Returns:
            Shape: (rollouts, tokens), float32: each row times the flat states is a pooled vector.
        """
        weights = torch.zeros(len(prefix_lengths), len(self.tokens))
        for rollout, (prefix, rationale) in enumerate(zip(prefix_lengths, rationale_lengths, strict=True)):
            start, length = self._prompt_start[rollout], self._prompt_length[rollout]
            share = 1 / (length - prefix + rationale)
            weights[rollout, start + prefix : start + length - 1] = share
            weights[rollout, self._branch_start[rollout] : self._branch_start[rollout] + 1 + rationale] = share
        return weights.to(self.tokens.device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    packed: PackedBatch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the trees of a PackedBatch.

    Args:
        module: The attention layer (part of transformers' attention interface, unused).
        query: Shape: (1, heads, tokens, head_dim).
        key: Shape: (1, key_value_heads, tokens, head_dim).
        value: As `key`.
        attention_mask: Unused; the batch knows what a token may see.
        scaling: Factor of the scores; 1/√head_dim if None.
        sliding_window: Number of latest positions that a token sees, if limited.
        dropout: Probability of dropout.
        packed: The batch.
        **kwargs: Options of other implementations; those that would change the result are refused.

    Returns:
        Output of shape (1, tokens, heads, head_dim), and None for the weights.

    Raises:
        UnsupportedAttentionError: If the model asks for soft-capping, sinks or a position bias, or does not pass the
            batch on to its attention.
    """
    refuse_unsupported(kwargs)
    if packed is None:
        raise UnsupportedAttentionError("the batch is not passed on to attention")
    query, key, value = (packed.pad(states[0].transpose(0, 1)).transpose(1, 2) for states in (query, key, value))
    if query.is_cuda:
        # With a mask and fewer heads of keys, torch takes the kernel there that keeps all scores for the backward pass.
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=packed.mask(sliding_window), dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return packed.flatten(output.transpose(1, 2))[None], None


AttentionInterface.register(IMPLEMENTATION, packed_attention)


def packed_implementation(model: nn.Module) -> AbstractContextManager[None]:
    """Let `model` attend over trees inside the block; backward passes with checkpoints belong inside too."""
    return attention_implementation(model, IMPLEMENTATION)


def pool_packed(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rationales: Sequence[Sequence[int]],
    prefixes: Sequence[int],
) -> Tensor:
    """Pooled vectors of rollouts, with gradients if they are enabled; inside `packed_implementation`.

    Args:
        model: The policy (not wrapped for several processes).
        prompts: Token ids of each prompt.
        rationales: Token ids of each rationale, without end token.
        prefixes: Leading tokens of each prompt that do not count.

    Returns:
        Shape: (rollouts, d), float32.
    """
    batch = PackedBatch(prompts, rationales, device=model.device)
    states: Tensor = model.base_model(
        input_ids=batch.tokens[None], position_ids=batch.positions[None], use_cache=False, packed=batch
    ).last_hidden_state[0]
    weights = batch.pooling_weights(prefixes, list(map(len, rationales)))
    with torch.autocast(states.device.type, enabled=False):
        return weights @ states.float()


def score_packed(model: nn.Module, policy: PreTrainedModel, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token of the completions, and entropy there (inside `packed_implementation`).

    Args:
        model: The policy, perhaps wrapped, with TRL's fused head.
        policy: The policy itself.
        batch: Prompts and completions.

    Returns:
        Two tensors of shape (Σ lengths,), float32, in the order of the completions; the second is None if the head
        computes no entropy, as that of a reference model.
    """

    def predictors_only(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, batch.predictors]
        return output

    # The head is run where a token was chosen; states of the rest are only pooled.
    hook = policy.base_model.register_forward_hook(predictors_only)
    try:
        output = model(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            packed=batch,
            shift_labels=batch.targets[None],
            fused_lm_head=True,
        )
    finally:
        hook.remove()
    return output.log_probs[0].float(), None if output.entropy is None else output.entropy[0].float()


def can_pack(model: PreTrainedModel) -> bool:
    """Try a small batch against separate rows; models that it does not suit give an error or other states."""
    vocabulary = model.config.get_text_config().vocab_size
    prompt = [7 * i % vocabulary for i in range(1, 12)]
    rationales = [[5 * i % vocabulary for i in range(1, length)] for length in (9, 4)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = torch.cat([pool_sequences(model, [prompt + rationale], 3) for rationale in rationales])
            with packed_implementation(model):
                packed = pool_packed(model, [prompt] * 2, rationales, [3, 3])
    except Exception as error:
        logger.warning("%s runs every rollout with its own prompt (%s).", type(model).__name__, error)
        return False
    finally:
        model.train(training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if float((packed - plain).abs().max()) <= tolerance * max(1.0, float(plain.abs().max())):
        return True
    logger.warning("%s runs every rollout with its own prompt (its states differ).", type(model).__name__)
    return False
