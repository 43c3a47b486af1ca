"""Rollouts that share their prompt: the log-probabilities and gradients of rollouts that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_training.packing import PackedBatch, can_pack, packed_implementation, pool_packed
from grace_training.pooling import pool_sequences

if TYPE_CHECKING:
    from grace_training.trainer import GraceTrainer

MakeTrainer = Callable[..., "GraceTrainer"]

MODELS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 5.0},
}


def policy(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **MODELS[kind],
    )
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "gemma2"])
def test_pooled_vectors_and_gradients_are_those_of_separate_rows(kind: str) -> None:
    model = policy(kind)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 8], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]]
    rationales = [[11, 12, 13], [14], [11, 15, 16, 17, 18, 19, 20, 21], []]
    assert can_pack(model)
    found = {}
    for name in ("packed", "separate"):
        model.zero_grad()
        if name == "packed":
            with packed_implementation(model):
                vectors = pool_packed(model, prompts, rationales, [3] * 4)
        else:
            rows = [prompt + rationale for prompt, rationale in zip(prompts, rationales, strict=True)]
            vectors = torch.cat([pool_sequences(model, [row], 3) for row in rows])
        (vectors * torch.arange(1, 5)[:, None]).square().sum().backward()
        found[name] = [vectors.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    assert len(found["packed"]) == len(found["separate"]) > 5
    for packed, separate in zip(found["packed"], found["separate"], strict=True):
        scale = float(separate.abs().max())
        torch.testing.assert_close(packed, separate, atol=1e-5 * max(1.0, scale), rtol=1e-4)


def test_a_shared_prompt_is_run_once() -> None:
    prompts, completions = [[1, 2, 3, 4]] * 3 + [[1, 2, 5]], [[7, 8], [9], [7, 8], [6]]
    batch = PackedBatch(prompts, completions, device=torch.device("cpu"))
    # The last token of a prompt predicts the first of every completion and is repeated.
    assert batch.tokens.tolist() == [1, 2, 3, 4, 7, 8, 4, 9, 4, 7, 8, 1, 2, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 3, 4, 5, 0, 1, 2, 3]
    assert batch.tokens[batch.predictors].tolist() == [4, 7, 4, 4, 7, 5]
    assert batch.targets.tolist() == [7, 8, 9, 7, 8, 6]


def test_a_model_with_soft_capped_attention_says_so_and_is_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    assert not can_pack(policy("gemma2"))
    assert "every rollout with its own prompt (softcap)" in caplog.text


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"beta": 0.5}], ids=str)
def test_the_loss_has_the_gradient_of_rollouts_with_their_own_prompts(
    make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    gradients = {}
    for share in (True, False):
        trainer = make_trainer(
            share_prompts=share, per_device_train_batch_size=32, gradient_accumulation_steps=1, **options
        )
        assert trainer._packs == share
        trainer.create_optimizer_and_scheduler(1)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        (inputs,) = [batch for _, batch in zip(range(1), trainer.get_train_dataloader(), strict=False)]
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, inputs, None)
        gradients[share] = {name: p.grad.clone() for name, p in trainer.policy.named_parameters() if p.grad is not None}
    assert gradients[True].keys() == gradients[False].keys()
    for name, packed in gradients[True].items():
        torch.testing.assert_close(packed, gradients[False][name], atol=1e-4, rtol=1e-3, msg=name)
