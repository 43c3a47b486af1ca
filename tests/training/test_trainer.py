"""GraceTrainer: the same vectors as inference, rewards and gradients equal to those computed by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from grace_retrieval import GraceEmbedder, InputError, ModelLoadError

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_training.advantages import penalise_truncated
from grace_training.pooling import pool_sequences
from grace_training.rewards import composite_reward
from grace_training.rollouts import GivenText
from grace_training.texts import embed_texts
from grace_training.trainer import ConstantRewardWarning, GraceTrainer

if TYPE_CHECKING:
    from datasets import Dataset

MakeTrainer = Callable[..., GraceTrainer]


def generate(trainer: GraceTrainer) -> dict[str, Any]:
    """One generation batch, as training makes it."""
    trainer.model.train()
    (inputs,) = [batch for _, batch in zip(range(1), trainer.get_train_dataloader(), strict=False)]
    return trainer._generate_and_score_completions(inputs)


def test_the_private_methods_it_overrides_have_the_signatures_it_knows() -> None:
    from trl import GRPOTrainer

    for name, parameters in {
        "_generate_and_score_completions": ["self", "inputs"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    }.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    parameters = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)  # called for vLLM
    assert parameters[:5] == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]


@pytest.mark.parametrize("roles", [["document"], ["document", "query"]])
def test_vectors_are_those_of_inference(make_trainer: MakeTrainer, roles: list[str]) -> None:
    trainer = make_trainer(rollout_roles=roles)
    generate(trainer)
    embedder = trainer.embedder
    assert {row["role"] for row in trainer.batch.rows} == set(roles)
    for row, rollout, other in zip(trainer.batch.rows, trainer.batch.rollouts, trainer.batch.others, strict=True):
        for text, role, written in ((row["prompt"], row["role"], rollout), (row["other"], row["other_role"], other)):
            encode = embedder.encode_query if role == "query" else embedder.encode_document
            rationale = embedder.writer.decode(written.rationale_ids)
            given = type(embedder.rationales(["a"])[0])(
                text=rationale, token_ids=written.rationale_ids, truncated=False, text_truncated=False
            )
            vector = encode([text], rationales=[given])[0]
            np.testing.assert_allclose(vector, written.vector / np.linalg.norm(written.vector), atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "grace"])
def test_rewards_and_advantages_are_those_of_the_formulas(make_trainer: MakeTrainer, preset: str) -> None:
    trainer = make_trainer(preset=preset)
    output = generate(trainer)
    rollouts = torch.tensor(np.stack([r.vector for r in trainer.batch.rollouts])).view(8, 4, -1)
    others = torch.tensor(np.stack([r.vector for r in trainer.batch.others]))[::4]
    negatives = torch.tensor(np.stack([r.vector for r in trainer.batch.negatives or []]))[::4]
    rewards = composite_reward(others, rollouts, negatives, preset=preset)  # type: ignore[arg-type]
    truncated = torch.tensor([r.truncated for r in trainer.batch.rollouts]).view(8, 4)
    assert truncated.any() and not truncated.all()
    penalised = penalise_truncated(rewards.total, truncated, preset=preset)  # type: ignore[arg-type]
    advantages = penalised - penalised.mean(1, keepdim=True)
    torch.testing.assert_close(output["advantages"], advantages.flatten(), atol=1e-5, rtol=0)
    assert len({r.rationale_ids for r in trainer.batch.rollouts[:4]}) > 1, "rollouts of a group differ"


def test_the_paper_has_no_pathwise_term(make_trainer: MakeTrainer) -> None:
    assert "pathwise_gradient" not in generate(make_trainer(preset="paper"))


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "rollout_roles": ["document", "query"]},
    ],
    ids=["one-micro-batch", "four-micro-batches-both-roles"],
)
def test_the_pathwise_gradient_is_that_of_infonce_by_brute_force(
    make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    trainer = make_trainer(pathwise_weight=0.5, **options)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    output = generate(trainer)
    output["advantages"] = torch.zeros_like(output["advantages"])  # silences the policy gradient
    batches = split_tensor_dict(shuffle_sequence_dict(output), trainer.args.steps_per_generation)
    trainer.model.zero_grad()
    for step, batch in enumerate(batches):
        trainer._step = step
        trainer.compute_loss(trainer.model, batch).backward()
    found = {name: p.grad.clone() for name, p in trainer.policy.named_parameters() if p.grad is not None}

    trainer.model.zero_grad()
    groups = len(trainer.batch.rollouts) // 4

    def pool(rollouts: Any) -> torch.Tensor:
        return torch.cat([pool_sequences(trainer.policy, [r.sequence], r.prefix_length) for r in rollouts])

    rollouts = pool(trainer.batch.rollouts).view(groups, 4, -1)
    others, negatives = pool(trainer.batch.others[::4]), pool((trainer.batch.negatives or [])[::4])
    roles = [row["role"] for row in trainer.batch.rows[::4]]
    texts = [{row["prompt"], row["other"]} for row in trainer.batch.rows[::4]]
    loss = torch.zeros(())
    for b in range(groups):
        rivals = [c for c in range(groups) if c == b or (roles[c] == roles[b] and not texts[c] & texts[b])]
        for i in range(4):
            target = torch.tensor([rivals.index(b)])
            for anchor, candidates in ((rollouts[b, i], others[rivals]), (others[b], rollouts[rivals, i])):
                candidates = torch.cat([candidates, negatives[b : b + 1]])
                logits = normalize(candidates, dim=-1) @ normalize(anchor, dim=-1) / 0.1
                loss = loss + torch.nn.functional.cross_entropy(logits[None], target) / (groups * 4 * 2)
    (0.5 * loss).backward()
    for name, parameter in trainer.policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("share_prompts", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("micro_batches", "role"), [(1, "document"), (1, "query"), (2, "query"), (16, "document")])
def test_batches_of_texts_alone_have_the_gradient_of_infonce_without_rationales(
    make_trainer: MakeTrainer, share_prompts: bool, micro_batches: int, role: str
) -> None:
    trainer = make_trainer(
        rationale_every=0,
        rollout_roles=[role],
        share_prompts=share_prompts,
        per_device_train_batch_size=32 // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )
    trainer.current_gradient_accumulation_steps = micro_batches
    output = generate(trainer)
    assert not trainer.batch.rollouts
    trainer.model.zero_grad()
    for step in range(micro_batches):
        trainer._step = step
        trainer.compute_loss(trainer.model, output).backward()
    found = {name: p.grad.clone() for name, p in trainer.policy.named_parameters() if p.grad is not None}

    trainer.model.zero_grad()
    rows = trainer.batch.rows[::4]

    def pool(of: str, texts: list[str]) -> torch.Tensor:
        shown = trainer.writer.render(texts, of)  # type: ignore[arg-type]
        pooled = [pool_sequences(trainer.policy, [text.input_ids], text.prefix_length) for text in shown]
        return normalize(torch.cat(pooled), dim=-1)

    document, query = ("prompt", "other") if role == "document" else ("other", "prompt")
    documents = pool("document", [row[document] for row in rows])
    queries = pool("query", [row[query] for row in rows])
    negatives = pool("document", [row["negative"] for row in rows])
    losses = []
    for b in range(8):
        for anchor, candidates in ((documents[b], queries), (queries[b], documents)):
            logits = torch.cat([candidates, negatives[b : b + 1]]) @ anchor / 0.1
            losses.append(torch.nn.functional.cross_entropy(logits[None], torch.tensor([b])))
    torch.stack(losses).mean().backward()
    for name, parameter in trainer.policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_the_loss_of_the_language_model_is_that_of_the_texts(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(rationale_every=0)
    texts = ["a text on tides", "bread", "the moon and its tides"]
    rendered = trainer.writer.render(texts, "document")
    prompts, prefix = [text.input_ids for text in rendered], rendered[0].prefix_length
    nll, tokens = 0.0, 0
    trainer.policy.eval()
    with torch.no_grad():
        for prompt in prompts:
            logits = trainer.policy(torch.tensor([prompt])).logits[0]
            nll += float(
                torch.nn.functional.cross_entropy(
                    logits[prefix - 1 : -1], torch.tensor(prompt[prefix:]), reduction="sum"
                )
            )
            tokens += len(prompt) - prefix
    for packs in (True, False):
        given = [GivenText("document", text) for text in texts]
        _, loss = embed_texts(trainer.policy, trainer.policy, trainer.writer, given, packs=packs, lm_share=1.0)
        assert float(loss.detach()) == pytest.approx(nll / tokens, rel=1e-4)


def test_every_second_batch_has_rationales(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(rationale_every=2, lm_loss_weight=0.1, max_steps=4, learning_rate=1e-3, logging_steps=1)
    before = {name: p.clone() for name, p in trainer.policy.named_parameters()}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [("texts/lm_loss" in entry, "rewards/composite/mean" in entry) for entry in logged] == [
        (False, True),
        (True, False),
        (False, True),
        (True, False),
    ]
    assert all(not torch.equal(before[name], p) for name, p in trainer.policy.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rationale_every": -1}, "0 or more"),
        ({"lm_loss_weight": 0.1}, "rationale_every=1"),
        ({"mode": "unsupervised", "rationale_every": 2}, "unsupervised"),
    ],
)
def test_options_of_texts_alone_that_make_no_sense_are_refused(
    make_trainer: MakeTrainer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(**options)


def test_training_moves_the_policy_and_the_result_opens(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    trainer = make_trainer()
    before = trainer.embedder.encode_document(["a text on tides"])
    trainer.train()
    after = trainer.embedder.encode_document(["a text on tides"])
    assert np.abs(after - before).max() > 1e-3
    trainer.save_embedder(tmp_path / "trained")
    opened = GraceEmbedder(tmp_path / "trained", cache=None, device="cpu")
    assert not list((tmp_path / "trained").glob("*.bin"))
    np.testing.assert_allclose(opened.encode_document(["a text on tides"]), after, atol=1e-5)


def test_adapters_train_and_are_merged_when_saved(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(arguments={"peft_config": lora}, save_strategy="steps", save_steps=2)
    trainer.train()
    after = trainer.embedder.encode_document(["a text on tides"])
    trainer.save_embedder(tmp_path / "trained")
    opened = GraceEmbedder(tmp_path / "trained", cache=None, device="cpu")
    np.testing.assert_allclose(opened.encode_document(["a text on tides"]), after, atol=1e-4)
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_adapters_of_a_policy_in_bfloat16_learn_from_what_it_writes(
    make_trainer: MakeTrainer, make_embedder: Any
) -> None:
    from peft import LoraConfig

    embedder = make_embedder(model_kwargs={"dtype": "bfloat16"})
    embedder.writer.model.generation_config.eos_token_id = list(range(300, 400))
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    halves: list[bool] = []

    def watched(batch: Any) -> Any:
        halves.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(batch.rollouts.shape[:2])

    arguments = {"peft_config": lora, "reward_terms": {"watched": watched}}
    trainer = make_trainer(embedder=embedder, pathwise_weight=1.0, arguments=arguments)
    before = {name: w.detach().clone() for name, w in trainer.policy.named_parameters() if w.requires_grad}
    assert before and all(weight.dtype == torch.float32 for weight in before.values())
    result = trainer.train()
    assert np.isfinite(result.training_loss)
    after = dict(trainer.policy.named_parameters())
    assert all(not torch.equal(after[name], weight) for name, weight in before.items() if "lora_B" in name)
    assert halves and not any(halves), "rewards are of float32"


def test_an_adapter_is_trained_further_as_the_one_that_it_is(
    make_trainer: MakeTrainer, tmp_path: Any, make_embedder: Any
) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file

    first, second = tmp_path / "first", tmp_path / "second"
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    saved = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}

    def made(folder: Any, **arguments: Any) -> GraceTrainer:
        embedder = make_embedder()
        embedder.writer.model.generation_config.eos_token_id = list(range(300, 400))
        return make_trainer(embedder=embedder, arguments=arguments, output_dir=str(folder), **saved)

    trainer = made(first, peft_config=lora)
    trainer.train()
    vectors = trainer.embedder.encode_document(["a text on tides"])
    begun = load_file(first / "checkpoint-1" / "adapter_model.safetensors")

    trainer = made(second, adapter=first / "checkpoint-1")
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        name.replace(".weight", ".default.weight") for name in begun
    }
    np.testing.assert_allclose(trainer.embedder.encode_document(["a text on tides"]), vectors, atol=1e-5)
    trainer.train()
    after = load_file(second / "checkpoint-1" / "adapter_model.safetensors")
    moved = {name: (after[name] - begun[name]).abs().max().item() for name in begun}
    assert all(0 < step < 1e-2 for step in moved.values()), moved
    trainer.save_embedder(tmp_path / "trained")
    opened = GraceEmbedder(tmp_path / "trained", cache=None, device="cpu")
    np.testing.assert_allclose(
        opened.encode_document(["a text on tides"]), trainer.embedder.encode_document(["a text on tides"]), atol=1e-4
    )

    with pytest.raises(InputError, match="go on with the one, or begin the other"):
        made(second, adapter=first / "checkpoint-1", peft_config=lora)
    with pytest.raises(InputError, match="is no adapter: give a folder"):
        made(second, adapter=tmp_path / "trained")
    (first / "checkpoint-1" / "grace_base.json").write_text('{"identity": "gguf-of-another"}')
    with pytest.raises(ModelLoadError, match="was trained on gguf-of-another, and the policy is "):
        made(second, adapter=first / "checkpoint-1")


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"bf16": True}, {"mode": "unsupervised"}], ids=str
)
def test_it_runs_with(make_trainer: MakeTrainer, options: dict[str, Any]) -> None:
    result = make_trainer(**options).train()
    assert np.isfinite(result.training_loss)


def test_a_run_that_is_resumed_ends_where_an_uninterrupted_one_does(
    make_trainer: MakeTrainer, tmp_path: Any, make_embedder: Any
) -> None:
    def fresh() -> GraceEmbedder:
        embedder = make_embedder()
        embedder.writer.model.generation_config.eos_token_id = list(range(300, 400))
        return embedder

    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole = make_trainer(embedder=fresh(), output_dir=str(tmp_path / "whole"), **saving)
    whole.train()
    resumed = make_trainer(embedder=fresh(), output_dir=str(tmp_path / "resumed"), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    for (name, one), other in zip(whole.policy.named_parameters(), resumed.policy.parameters(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=0, msg=name)


def test_another_configuration_is_refused_when_resuming(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    other = make_trainer(reward_temperature=0.2)
    with pytest.raises(InputError, match=r"reward_temperature: 0.1 then, 0.2 now"):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        make_trainer(output_dir=str(tmp_path / "empty")).train(resume_from_checkpoint=True)


def test_a_reward_that_is_the_same_for_all_is_reported(make_trainer: MakeTrainer, make_embedder: Any) -> None:
    trainer = make_trainer(embedder=make_embedder())  # its rationales never end
    with pytest.raises(ConstantRewardWarning, match="nothing to learn"):  # warnings are errors in tests
        generate(trainer)


def test_a_reward_that_is_not_finite_stops_with_the_batch_saved(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    trainer = make_trainer(reward_temperature=1e-40)
    with pytest.raises(RuntimeError, match="not finite"):
        generate(trainer)
    (saved,) = (tmp_path / "run").glob("bad-batch-*.json")
    assert "a text on tides" in saved.read_text(encoding="utf-8")


def test_rows_without_the_columns_are_refused(make_trainer: MakeTrainer, pairs: Dataset) -> None:
    with pytest.raises(InputError, match="train_dataset lacks other, other_role, prompt, role"):
        make_trainer(rows=pairs)
