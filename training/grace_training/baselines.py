"""What rationales are compared with: the same policies trained by InfoNCE on text alone, by stock trainers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from grace_retrieval import GraceEmbedder, InputError
from grace_retrieval.loading import resolve_model
from grace_training.learned import must_learn

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

__all__ = ["last_token_model", "train_contrastive"]


def last_token_model(model: str | os.PathLike[str], *, max_seq_length: int) -> SentenceTransformer:
    """A policy as a plain embedding model: the state of the last token of the text alone, without prompt or rationale.

    Args:
        model: A folder, a hub name, or a bundled model.
        max_seq_length: Most tokens of a text.
    """
    # As GraceEmbedder loads it: half precision is slow on CPUs, and small updates get lost in it.
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    backbone = Transformer(resolve_model(model), max_seq_length=max_seq_length, model_kwargs={"dtype": dtype})
    backbone.tokenizer.padding_side = "right"
    if backbone.tokenizer.pad_token is None:
        backbone.tokenizer.pad_token = backbone.tokenizer.eos_token
    width = backbone.get_embedding_dimension()
    return SentenceTransformer(modules=[backbone, Pooling(width, pooling_mode="lasttoken"), Normalize()])


def train_contrastive(
    model: SentenceTransformer,
    examples: Dataset,
    *,
    output_dir: str,
    temperature: float,
    unsupervised: bool = False,
    dropout: float = 0.1,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    options: Mapping[str, Any],
) -> SentenceTransformerTrainer:
    """Train by InfoNCE over the batch (MultipleNegativesRankingLoss), text alone.

    Args:
        model: The model; it is changed.
        examples: Pairs from `load_examples`; unsupervised, texts.
        output_dir: Folder of checkpoints.
        temperature: Similarities are divided by it.
        unsupervised: Whether a text is its own positive under another dropout mask (SimCSE, arXiv 2104.08821).
        dropout: Probability of attention dropout in that case.
        resume: Whether to go on from the last checkpoint.
        callbacks: As in the trainer.
        options: Options of SentenceTransformerTrainingArguments.

    Returns:
        The trainer, when it has ended.

    Raises:
        InputError: If supervised training gets no pairs, the policy knows no dropout, or nothing was learned.
    """
    if unsupervised:
        texts = examples["text" if "text" in examples.column_names else "positive"]
        examples = type(examples).from_dict({"query": list(texts), "positive": list(texts)})
        _set_dropout(model, dropout)
    elif "query" not in examples.column_names:
        raise InputError("Contrastive training needs columns query and positive; method simcse takes texts alone.")
    settings: dict[str, Any] = dict(options)
    if isinstance(model, GraceEmbedder):
        model.pipeline.options.rationale = False
        roles = {"query": "document" if unsupervised else "query", "positive": "document", "negative": "document"}
        settings["prompts"] = {name: model.prompts[roles[name]] or "" for name in examples.column_names}
    arguments = SentenceTransformerTrainingArguments(output_dir=output_dir, **settings)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        loss=MultipleNegativesRankingLoss(model, scale=1 / temperature),
        callbacks=list(callbacks),
    )
    with must_learn(trainer, resumed=resume):
        trainer.train(resume_from_checkpoint=resume or None)
    if unsupervised:
        _set_dropout(model, 0.0)
    return trainer


def _set_dropout(model: SentenceTransformer, probability: float) -> None:
    """Set the attention's dropout, which policies have and mostly leave at 0."""
    changed = 0
    for module in model.modules():
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            setattr(module, "attention_dropout", probability)  # noqa: B010 - nn.Module declares no such attribute
            changed += 1
        elif isinstance(module, torch.nn.Dropout):
            module.p = probability
            changed += 1
    if not changed:
        raise InputError(
            "SimCSE makes two views of a text by dropout, and this policy has no layer that drops anything."
        )
