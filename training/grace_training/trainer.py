"""GraceTrainer: GRPO on rationales, rewarded by how well they retrieve.

What it adds to TRL's GRPOTrainer: rollouts by the embedder's own pipeline, rewards over the batch of all processes, the
pathwise half of the gradient, and a result that `GraceEmbedder(folder)` opens.

TRL calls back three times for a batch, and `batch` is what passes between the calls:

    _generate_and_score_completions    takes the rows, and keeps the pathwise gradients beside what TRL made of them
    rollout_func                       renders the prompts, once, and has the rationales written
    reward_funcs                       gathers all processes' rollouts and rewards them

`rollout_func` is public in TRL and replaces two private methods (experimental there, but so are these).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from grace_retrieval import GraceEmbedder
from grace_retrieval.adapters import cast_weights
from grace_retrieval.engines.ragged import attention_implementation
from grace_retrieval.errors import EngineError, InputError
from grace_retrieval.prompt import RenderedText
from grace_retrieval.threads import share_cores
from grace_training.adapters import trainable_adapter
from grace_training.advantages import penalise_truncated, variance_within_groups
from grace_training.batch import RewardTerm
from grace_training.config import GraceConfig
from grace_training.packing import PackedBatch, can_pack, packed_implementation, pool_packed, score_packed
from grace_training.pooling import captured_states, pool_sequences, pool_states
from grace_training.rewards import reward_batch, weighted_terms
from grace_training.rollouts import PolicyWriter, Rollout, pooled_completions, write_others
from grace_training.saving import CheckpointedTrainer, StopOnSignal
from grace_training.scoring import gather_batch, pathwise_gradients
from grace_training.sources import SourceSampler
from grace_training.step import GenerationBatch
from grace_training.teacher import Teacher
from grace_training.texts import TextBatch

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import PreTrainedModel, TrainerCallback

__all__ = ["ConstantRewardWarning", "GraceTrainer"]


class ConstantRewardWarning(UserWarning):
    """All rollouts of every group got the same reward, so the policy has nothing to learn from."""


class GraceTrainer(CheckpointedTrainer):
    """Trains an embedder to write rationales that retrieve well.

    Args:
        model: The embedder to train, or what `GraceEmbedder` opens. Its cache is not used: the policy changes.
        args: Options.
        train_dataset: Rows made by `grace_training.data.training_rows`.
        eval_dataset: Such rows, for evaluation.
        callbacks: As in TRL.
        peft_config: As in TRL, for LoRA.
        adapter: Folder of an adapter of this policy that is trained further, as PEFT saved it; instead of peft_config.
        reward_terms: Terms of your own beside ours: name → function of a RolloutBatch, or function and weight.
        teacher: Another model whose similarities are soft targets in batches for which nothing is written.

    Attributes:
        batch: What is known of the generation batch in hand.

    Raises:
        InputError: If the rows lack columns, a reward term is none, or processes share the weights out (FSDP, DeepSpeed
            ZeRO-3).
    """

    args: GraceConfig

    def __init__(
        self,
        model: GraceEmbedder | str | os.PathLike[str],
        args: GraceConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        adapter: str | os.PathLike[str] | None = None,
        reward_terms: Mapping[str, RewardTerm | tuple[RewardTerm, float]] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.embedder = model if isinstance(model, GraceEmbedder) else GraceEmbedder(model, cache=None)
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if rows is not None and (missing := {"prompt", "role", "other", "other_role"} - set(rows.column_names)):
                raise InputError(
                    f"{name} lacks {', '.join(sorted(missing))}: make the rows with grace_training.data.training_rows."
                )
        if args.max_completion_length is None:
            args.max_completion_length = self.embedder.pipeline.options.max_new_tokens
        self.terms = weighted_terms(args.preset, **args.term_weights(), others=reward_terms)
        pipeline = self.embedder.pipeline
        if args.disable_dropout:
            # Rollouts are written without dropout; then the forward pass that learns from them must be without too.
            for module in pipeline.module.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        self.policy: PreTrainedModel = pipeline.module
        self.writer = PolicyWriter(self.embedder, args.max_completion_length)
        self.stop_on_signal = StopOnSignal()
        self.teacher = teacher
        if adapter is not None and peft_config is not None:
            raise InputError("adapter and peft_config were given: go on with the one, or begin the other.")
        adapted = None if adapter is None else trainable_adapter(adapter, self.embedder)
        with_adapters = adapted is not None or peft_config is not None
        if self.policy.dtype == torch.bfloat16 and not args.fp16 and (with_adapters or args.use_cpu):
            # What is trained is kept in float32, or small steps would be lost, and used in bfloat16 by autocast.
            args.bf16, args.mixed_precision = True, "bf16"
            if not with_adapters:
                cast_weights(self.policy, torch.float32)
        super().__init__(
            model=pipeline.module if adapted is None else adapted,
            args=args,
            reward_funcs=[self.composite],  # type: ignore[list-item]  # a list of float is one of float | None
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=pipeline.tokenizer,
            callbacks=[self.stop_on_signal, *(callbacks or [])],
            peft_config=peft_config,
        )
        self.rollout_func = self.write_rollouts
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError("FSDP and DeepSpeed are not supported: rollouts need whole weights. Launch with DDP.")
        self.folder = Path(args.output_dir or "trainer_output")
        self._micro_batches = int(args.steps_per_generation or 1)  # of a generation batch
        self.batch = GenerationBatch()
        self._attention = str(self.policy.config._attn_implementation)  # its own, with which it writes
        self._packs = bool(args.share_prompts) and can_pack(self.policy)
        self._packed: PackedBatch | None = None  # of the last forward pass

    # ------------------------------------------------------------------ rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Let TRL generate and score, then keep what the pathwise term needs beside each row."""
        self.batch = GenerationBatch(rows=inputs)
        if self.policy.training and not self._has_rationales():
            return self._texts_alone(inputs)
        with attention_implementation(self.policy, self._attention):
            output = cast("dict[str, Any]", super()._generate_and_score_completions(inputs))
        if self.policy.training and self.args.pathwise_weight:
            self._keep_pathwise(output)
        return output

    def _has_rationales(self) -> bool:
        """Whether rationales are written for the generation batch that is due."""
        every, accumulated = self.args.rationale_every, self.args.gradient_accumulation_steps
        micro_batch = self.state.global_step * accumulated + self._step % accumulated
        batch = micro_batch // (self._micro_batches * int(self.num_iterations))
        return every > 0 and batch % every == 0

    def write_rollouts(self, prompts: list[str], _: Any) -> dict[str, Any]:
        """Write rollouts in one pass, by the embedder's pipeline; by vLLM where TRL was told to use it.

        Args:
            prompts: The texts of the batch's rows.

        Returns:
            What TRL asks of a `rollout_func`: prompt_ids, completion_ids, and logprobs where vLLM wrote.
        """
        batch, seed = self.batch, self._generation_seed()
        first, n = self.accelerator.process_index * len(prompts), self._generations()
        rendered: dict[int, RenderedText] = {}
        written: dict[int, Rollout] = {}
        for role in dict.fromkeys(row["role"] for row in batch.rows):
            places = [place for place, row in enumerate(batch.rows) if row["role"] == role]
            shown = self.writer.render([prompts[place] for place in places], role)
            rendered |= zip(places, shown, strict=True)
            if not self.use_vllm:
                with self._half():
                    rollouts = self.writer.write(
                        shown,
                        temperature=self.args.temperature,
                        top_p=self.args.top_p,
                        top_k=self.args.top_k,
                        seed=seed,
                        samples=[(first + place) % n for place in places],
                    )
                written |= zip(places, rollouts, strict=True)
        shown = [rendered[place] for place in range(len(prompts))]
        self._metric("prompts/shortened_ratio", sum(text.truncated for text in shown) / len(shown))
        prompt_ids, logprobs = [list(text.input_ids) for text in shown], None
        if self.use_vllm:
            completions, logprobs = self._generate_single_turn(prompt_ids, None, {}, n)  # type: ignore[no-untyped-call]
            with self._half():
                batch.rollouts = self._pool_completions(shown, completions)
        else:
            batch.rollouts = [written[place] for place in range(len(prompts))]
            completions = [rollout.completion_ids for rollout in batch.rollouts]
        with self._half():
            batch.others, batch.negatives = write_others(
                self.writer, batch.rows, temperature=self.args.other_temperature, seed=seed, sample=n
            )
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": logprobs}

    def _generations(self) -> int:
        """Rollouts of a text."""
        return int((self.num_generations if self.policy.training else self.num_generations_eval) or 1)

    def _pool_completions(self, prompts: Sequence[RenderedText], completions: list[list[int]]) -> list[Rollout]:
        """Rollouts of rationales that another engine wrote, pooled without dropout."""
        training = self.policy.training
        self.policy.eval()
        try:
            return pooled_completions(
                prompts,
                completions,
                end_tokens=self.writer.end_tokens,
                pool=self._pool,
                batch_size=self.args.per_device_train_batch_size,
            )
        finally:
            self.policy.train(training)

    def _generation_seed(self) -> int:
        """A seed of this generation batch that every process agrees on, also after a resume."""
        step = self._step % max(self.args.gradient_accumulation_steps, self._micro_batches)
        mode = 0 if self.policy.training else 1
        words = np.random.SeedSequence([self.args.seed, self.state.global_step, step, mode]).generate_state(1)
        return int(words[0])

    # ------------------------------------------------------------------ rewards

    def composite(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """The reward function that TRL calls: rewards of this process's rollouts, with the penalty of truncated ones.

        Args:
            completion_ids: Token ids of the rollouts.
        """
        device, batch, n = self.accelerator.device, self.batch, self._generations()
        decode = self.embedder.pipeline.decode
        gathered = gather_batch(
            batch.rows,
            _stack(batch.rollouts, device),
            _stack(batch.others, device),
            None if batch.negatives is None else _stack(batch.negatives, device),
            self.args,
            n,
            written=[(decode(r.rationale_ids), len(r.rationale_ids), r.truncated) for r in batch.rollouts],
        )
        rewards = reward_batch(gathered, self.terms)
        total = penalise_truncated(
            rewards.total,
            cast(Tensor, gathered.truncated),
            preset=self.args.preset,
            margin=self.args.truncation_margin,
        )
        batch.gathered, batch.rewards = gathered, total
        if not torch.isfinite(total).all():
            names = [name for name, term in rewards.terms.items() if not torch.isfinite(term).all()]
            raise EngineError(
                f"A reward is not finite ({', '.join(names) or 'the sum of the terms'}). The batch was saved: "
                f"{self._save_batch()}"
            )
        for name, term in rewards.terms.items():
            self._metric(f"reward_terms/{name}", float(term.mean()))
            self._metric(f"variance_within_groups/{name}", float(variance_within_groups(term)))
        self._metric("variance_within_groups/total", float(variance_within_groups(total)))
        if n > 1 and self.policy.training and bool((total.var(1) < 1e-12).all()):
            warnings.warn(
                "All rollouts of every group got the same reward: the policy has nothing to learn from this batch. "
                "Raise temperature or num_generations; if all rationales hit max_completion_length, raise that or "
                "start from a policy that ends its rationales.",
                ConstantRewardWarning,
                stacklevel=2,
            )
        first = self.accelerator.process_index * len(completion_ids)
        return cast("list[float]", total.flatten()[first : first + len(completion_ids)].tolist())

    def _save_batch(self) -> Path:
        """Write down what gave a reward that is not finite."""
        path = self.folder / f"bad-batch-{self.state.global_step}-{self.accelerator.process_index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = [
            {
                **row,
                "rationale": self.embedder.pipeline.decode(rollout.rationale_ids),
                "vector_finite": bool(np.isfinite(rollout.vector).all()),
            }
            for row, rollout in zip(self.batch.rows, self.batch.rollouts, strict=True)
        ]
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def record(self, metrics: Mapping[str, float]) -> None:
        """Log figures with the next step's.

        Args:
            metrics: Figures by name.
        """
        for name, value in metrics.items():
            self._metric(name, value)

    def _metric(self, name: str, value: float) -> None:
        self._metrics["train" if self.policy.training else "eval"][name].append(value)

    # ------------------------------------------------------------------ the pathwise half of the gradient

    def _keep_pathwise(self, output: dict[str, Any]) -> None:
        """Differentiate InfoNCE by the pooled vectors once, and keep each row's part beside it; TRL shuffles rows."""
        batch = self.batch
        if batch.gathered is None:
            raise EngineError("The batch was not scored; `composite` must be among the reward functions.")
        gradients = pathwise_gradients(batch.gathered)
        self._metric("pathwise/loss", float(gradients.loss))
        # Micro-batches of an update hold only a part of the batch, and processes average their gradients.
        scale = float(self.args.pathwise_weight or 0.0) * self.accelerator.num_processes
        scale *= self._micro_batches / self.args.gradient_accumulation_steps
        rows, n = len(batch.rows), int(self.num_generations or 1)
        first = self.accelerator.process_index * rows
        output["pathwise_gradient"] = gradients.rollouts.flatten(0, 1)[first : first + rows] * scale
        output["prefix_length"] = torch.tensor(
            [rollout.prefix_length for rollout in batch.rollouts], device=self.accelerator.device
        )
        # Each group's query and negative are run by the process that has the group's first rollout.
        for place in range(rows):
            if (first + place) % n == 0:
                group = (first + place) // n
                batch.side.append((batch.others[place], gradients.others[group] * scale))
                if batch.negatives is not None and gradients.negatives is not None:
                    batch.side.append((batch.negatives[place], gradients.negatives[group] * scale))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forwards and backwards; checkpointed layers run again on the way back."""
        share_cores(self.accelerator.device.type)
        with self._packing(), self._adapters_in_half():
            return cast(Tensor, super().training_step(*args, **kwargs))  # type: ignore[no-untyped-call]

    def _packing(self) -> AbstractContextManager[None]:
        return packed_implementation(self.policy) if self._packs else nullcontext()

    def _adapters_in_half(self) -> AbstractContextManager[None]:
        """Without this PEFT turns every activation into the adapters' float32, and autocast turns it back."""
        if not self._has_half_adapters():
            return nullcontext()
        from peft.helpers import disable_input_dtype_casting

        return cast("AbstractContextManager[None]", disable_input_dtype_casting(cast(torch.nn.Module, self.model)))

    def _has_half_adapters(self) -> bool:
        return bool(self.args.bf16) and hasattr(self.model, "peft_config")

    def _half(self) -> AbstractContextManager[None]:
        """Autocast, for passes that neither TRL nor accelerate puts under it: `_adapters_in_half` leaves all to it."""
        on = self.policy.training and self._has_half_adapters()
        return cast("AbstractContextManager[None]", self.accelerator.autocast()) if on else nullcontext()

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """TRL's sampler, whose batches are of one source if that is asked for."""
        sampler: Any = super()._get_train_sampler(dataset)
        if not self.args.batch_by_source:
            return sampler
        rows = cast("Dataset", dataset if dataset is not None else self.train_dataset)
        return SourceSampler(sampler, rows["source"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """GRPO's loss, and with a pathwise weight the product of pooled states and their gradients."""
        if "texts_alone" in inputs and self.batch.texts is not None:
            return self._text_loss(model, self.batch.texts)
        if "pathwise_gradient" not in inputs:
            return cast(Tensor, super().compute_loss(model, inputs, return_outputs, num_items_in_batch))
        with captured_states(self.policy) as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        vectors = self._pooled(inputs, states[0])
        loss = loss + (vectors * inputs["pathwise_gradient"]).sum()
        for rollouts, gradient in self._side_part(self._step % self._micro_batches):
            with self._half():
                pooled = self._pool(rollouts)
            loss = loss + (pooled * gradient).sum()
        return cast(Tensor, loss)

    def _texts_alone(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A generation batch for which nothing is written."""
        with self.accelerator.autocast():
            self.batch.texts = TextBatch(
                rows,
                self.policy,
                self.writer,
                self.args,
                packs=self._packs,
                teacher=self.teacher,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
                micro_batches=self._micro_batches,
            )
        return {"texts_alone": torch.ones(len(rows), device=self.accelerator.device)}

    def _text_loss(self, model: Any, texts: TextBatch) -> Tensor:
        """InfoNCE on this micro-batch's part of the texts alone."""
        with self.accelerator.autocast():
            contrast, language = texts.loss(model, self._step % self._micro_batches)
        self._metric("texts/contrastive_loss", texts.contrastive_loss)
        if self.teacher is not None:
            self._metric("texts/teacher_loss", texts.teacher_loss)
        loss = contrast
        if self.args.lm_loss_weight:
            self._metric("texts/lm_loss", float(language.detach()))
            loss = loss + self.args.lm_loss_weight * language
        return loss / self.current_gradient_accumulation_steps

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities (rows, logits_to_keep) of the completions, with rollouts of a text sharing its prompt."""
        if not self._packs or compute_aux_loss:
            return cast(
                "tuple[Tensor, Tensor | None, Tensor | None]",
                super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size,
                    compute_entropy,
                    compute_aux_loss,
                    **multimodal,
                ),
            )
        prompts = _unpad(input_ids[:, :-logits_to_keep], attention_mask[:, :-logits_to_keep])
        written = attention_mask[:, -logits_to_keep:].bool()
        completions = _unpad(input_ids[:, -logits_to_keep:], written)
        size = batch_size or len(prompts)
        found = []
        # The reference model is another one only where there are no adapters to switch off.
        policy = self.policy if model is not self.ref_model else self.accelerator.unwrap_model(model)
        with packed_implementation(policy):
            for start in range(0, len(prompts), size):
                rows = slice(start, start + size)
                self._packed = PackedBatch(prompts[rows], completions[rows], device=input_ids.device)
                with self.accelerator.autocast():
                    found.append(score_packed(model, policy, self._packed))
        padded = [
            torch.zeros(written.shape, device=input_ids.device).masked_scatter(written, torch.cat(values))
            for values in zip(*found, strict=True)
            if values[0] is not None
        ]
        return padded[0], padded[1] if compute_entropy and len(padded) > 1 else None, None

    def _pooled(self, inputs: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """Pooled vectors of a micro-batch's rollouts from its forward pass. Shape: (rows, d)."""
        ends = torch.tensor(sorted(self.writer.end_tokens), device=states.device)
        written = inputs["completion_mask"].bool() & ~torch.isin(inputs["completion_ids"], ends)
        if self._packs and self._packed is not None:
            weights = self._packed.pooling_weights(inputs["prefix_length"].tolist(), written.sum(1).tolist())
            return weights @ states[0].float()
        prompt = inputs["prompt_mask"].bool()
        behind_prefix = prompt.cumsum(1) > inputs["prefix_length"][:, None]
        return pool_states(states, torch.cat([prompt & behind_prefix, written], dim=1))

    def _pool(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Pooled vectors of rollouts with one system prefix, by a forward pass of their own. Shape: (rollouts, d)."""
        if self._packs:
            with self._packing():
                return pool_packed(
                    self.policy,
                    [rollout.prompt_ids for rollout in rollouts],
                    [rollout.rationale_ids for rollout in rollouts],
                    [rollout.prefix_length for rollout in rollouts],
                )
        return pool_sequences(self.policy, [r.sequence for r in rollouts], rollouts[0].prefix_length)

    def _side_part(self, part: int) -> list[tuple[list[Rollout], Tensor]]:
        """Queries and negatives whose forward pass falls to this micro-batch, by their system prefix."""
        chosen = self.batch.side[part :: self._micro_batches]
        groups: dict[int, list[tuple[Rollout, Tensor]]] = {}
        for rollout, gradient in chosen:
            groups.setdefault(rollout.prefix_length, []).append((rollout, gradient))
        return [([r for r, _ in group], torch.stack([g for _, g in group])) for group in groups.values()]


def _unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of token ids without padding."""
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]


def _stack(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """Vectors of rollouts. Shape: (rollouts, d), float32."""
    return torch.from_numpy(np.stack([rollout.vector for rollout in rollouts])).to(device)
