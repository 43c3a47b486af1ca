"""The network: stock Llama parameters, with a forward pass for training that is fast on a CPU.

The parameters live in `LlamaForCausalLM`, so a checkpoint needs no conversion. For training, its forward pass
is replaced by compiled bfloat16 layers (float32 residual stream) and by a cross entropy that never keeps the
logits: about three times the tokens a second of the stock pass under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from grace_nano.repeats import repeat_candidates

__all__ = ["FastLoss", "build_model"]

_CHUNK = 1024
_WINDOW = 96


def build_model(options: dict[str, Any], vocab_size: int, eos_id: int, pad_id: int, seed: int) -> LlamaForCausalLM:
    """Make an untrained model.

    Args:
        options: Sizes, as keyword arguments of `LlamaConfig`.
        vocab_size: Number of token ids.
        eos_id: Id of the end-of-turn token.
        pad_id: Id of padding.
        seed: Seed of the initial weights.

    Returns:
        The model in float32; projections into the residual stream start smaller by the square root of twice
        the number of layers.
    """
    torch.manual_seed(seed)
    options = dict(options)
    rope_theta = options.pop("rope_theta")
    config = LlamaConfig(
        vocab_size=vocab_size,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        **options,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * int(config.num_hidden_layers or 1)) ** -0.5)
    return model


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight).to(torch.bfloat16)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _layer(
    x: Tensor, weights: dict[str, Tensor], cos: Tensor, sin: Tensor, mask: Tensor, head_dim: int, eps: float
) -> Tensor:
    """One decoder layer: `x` float32 (rows, length, hidden), `mask` additive (rows, 1, 1, length, length)."""
    w = {name: weight.to(torch.bfloat16) for name, weight in weights.items() if weight.dim() == 2}
    rows, length, _ = x.shape
    heads, groups = w["q"].shape[0] // head_dim, w["k"].shape[0] // head_dim
    share = heads // groups
    y = _norm(x, weights["input_norm"], eps)
    q = _rotate(F.linear(y, w["q"]).view(rows, length, heads, head_dim).transpose(1, 2), cos, sin)
    k = _rotate(F.linear(y, w["k"]).view(rows, length, groups, head_dim).transpose(1, 2), cos, sin)
    v = F.linear(y, w["v"]).view(rows, length, groups, head_dim).transpose(1, 2)
    q = q.reshape(rows * groups, share * length, head_dim)
    k, v = k.reshape(rows * groups, length, head_dim), v.reshape(rows * groups, length, head_dim)
    scores = torch.bmm(q, k.transpose(1, 2)).view(rows, groups, share, length, length)
    attention = torch.softmax(scores * head_dim**-0.5 + mask, dim=-1)
    mixed = torch.bmm(attention.view(rows * groups, share * length, length), v)
    mixed = mixed.view(rows, heads, length, head_dim).transpose(1, 2).reshape(rows, length, heads * head_dim)
    x = x + F.linear(mixed, w["o"])
    y = _norm(x, weights["post_norm"], eps)
    return x + F.linear(F.silu(F.linear(y, w["gate"])) * F.linear(y, w["up"]), w["down"])


def _chunk_loss(logits: Tensor, targets: Tensor, weights: Tensor, unwanted: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token cross entropy of a chunk, and the gradient of the weighted loss with respect to the logits.

    The gradient includes unlikelihood, -log(1 - p), of every token by its entry in `unwanted`.
    """
    values = logits.float()
    top = values.amax(-1, keepdim=True)
    exponents = torch.exp(values - top)
    total = exponents.sum(-1, keepdim=True)
    loss = (torch.log(total) + top - values.gather(1, targets[:, None]))[:, 0]
    hit = torch.arange(logits.shape[1])[None] == targets[:, None]
    shares = exponents / total
    pushed = torch.where(hit, 0.0, unwanted * shares / (1.0 - shares).clamp(min=1e-3))
    gradient = (shares - hit.float() + pushed - shares * pushed.sum(-1, keepdim=True)) * weights[:, None]
    return loss, gradient.to(logits.dtype)


class _HeadLoss(torch.autograd.Function):
    """Weighted mean cross entropy through the output matrix, with gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        targets: Tensor,
        weights: Tensor,
        candidates: Tensor | None,
        unlikelihood: float,
        chunk: Callable[..., Any],
    ) -> tuple[Tensor, Tensor]:
        low = matrix.to(torch.bfloat16)
        grad_hidden = torch.empty_like(hidden)
        grad_matrix = torch.zeros_like(matrix)
        losses = torch.empty(hidden.shape[0])
        for start in range(0, hidden.shape[0], _CHUNK):
            part = slice(start, start + _CHUNK)
            unwanted = torch.zeros(_CHUNK, matrix.shape[0], dtype=torch.bfloat16)
            if candidates is not None:
                unwanted.scatter_(1, candidates[part], unlikelihood)
            losses[part], gradient = chunk(hidden[part] @ low.t(), targets[part], weights[part], unwanted)
            grad_hidden[part] = gradient @ low
            grad_matrix += gradient.t() @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_matrix)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_matrix = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_matrix * grads[0], None, None, None, None, None


class FastLoss:
    """Weighted language modelling loss of packed rows on the parameters of a `LlamaForCausalLM`.

    Args:
        model: The model whose parameters are used.
        compiled: Compile the layers; without it the same numbers come slower.
    """

    def __init__(self, model: LlamaForCausalLM, compiled: bool = True) -> None:
        self.model = model
        self.config: Any = model.config
        self._layer: Callable[..., Tensor] = torch.compile(_layer, dynamic=False) if compiled else _layer
        self._chunk: Callable[..., Any] = torch.compile(_chunk_loss, dynamic=False) if compiled else _chunk_loss
        self._layers = [
            {
                "input_norm": layer.input_layernorm.weight,
                "post_norm": layer.post_attention_layernorm.weight,
                "q": layer.self_attn.q_proj.weight,
                "k": layer.self_attn.k_proj.weight,
                "v": layer.self_attn.v_proj.weight,
                "o": layer.self_attn.o_proj.weight,
                "gate": layer.mlp.gate_proj.weight,
                "up": layer.mlp.up_proj.weight,
                "down": layer.mlp.down_proj.weight,
            }
            for layer in cast(Any, model.model.layers)
        ]

    def hidden_states(self, ids: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
        """Run the layers.

        Args:
            ids: Token ids. Shape: (rows, length).
            documents: Number of the example of each token; attention stays within it. Shape: (rows, length).
            positions: Position of each token in its example. Shape: (rows, length).

        Returns:
            Normalised last hidden states. Shape: (rows, length, hidden), dtype bfloat16.
        """
        head_dim, eps = int(self.config.head_dim), float(self.config.rms_norm_eps)
        theta = float(self.config.rope_parameters["rope_theta"])
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = positions[:, None, :, None].float() * torch.cat((frequencies, frequencies))
        cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        length = ids.shape[1]
        allowed = (documents[:, :, None] == documents[:, None, :]) & torch.ones(length, length).tril().bool()
        mask = torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill_(~allowed, -1e4)[:, None, None]
        x = F.embedding(ids, self.model.model.embed_tokens.weight)
        for weights in self._layers:
            x = self._layer(x, weights, cos, sin, mask, head_dim, eps)
        return _norm(x, cast(Tensor, self.model.model.norm.weight), eps)

    def __call__(
        self,
        ids: Tensor,
        documents: Tensor,
        positions: Tensor,
        weights: Tensor,
        kinds: Tensor | None = None,
        unlikelihood: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss.

        Args:
            ids: Token ids. Shape: (rows, length).
            documents: Number of the example of each token. Shape: (rows, length).
            positions: Position of each token in its example. Shape: (rows, length).
            weights: Loss weight of each token as a target; 0 for the first of an example.
                Shape: (rows, length).
            kinds: Kind of each token; needed for unlikelihood only. Shape: (rows, length).
            unlikelihood: Weight of the unlikelihood of repeats in rationales; it changes the gradient, not the
                returned losses.

        Returns:
            The weighted mean loss (differentiable); the loss of every target with a weight; and the flat
            indices of these targets in `ids`.
        """
        hidden = self.hidden_states(ids, documents, positions).flatten(0, 1)
        chosen = torch.nonzero(weights.flatten() > 0)[:, 0]
        padding = -len(chosen) % _CHUNK
        padded = torch.cat((chosen, chosen.new_full((padding,), 1)))
        target_weights = weights.flatten()[padded]
        target_weights[len(chosen) :] = 0.0
        target_weights /= target_weights.sum()
        candidates = None
        if kinds is not None and unlikelihood > 0.0:
            candidates = repeat_candidates(ids, documents, kinds, padded, _WINDOW)
        apply = cast(Callable[..., tuple[Tensor, Tensor]], _HeadLoss.apply)
        loss, losses = apply(
            hidden.index_select(0, padded - 1),
            self.model.model.embed_tokens.weight,
            ids.flatten()[padded],
            target_weights,
            candidates,
            unlikelihood,
            self._chunk,
        )
        return loss, losses[: len(chosen)], chosen
