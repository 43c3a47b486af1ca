"""GraceEmbedder under the training code of sentence-transformers: gradients, slices, no rationales by surprise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

QUERIES = ["What causes tides?", "Why does bread rise?", "Who was Ada Lovelace?", "How do planes fly?", "What is rust?"]
DOCUMENTS = [
    "The moon's gravity pulls on the oceans.",
    "Yeast makes gas.",
    "She wrote the first program for an engine that was never built.",
    "Air below the wing pushes.",
    "Iron oxide.",
]


def new_tokens(embedder: GraceEmbedder) -> int:
    return embedder.writer.engine.statistics()["new_tokens"]


def gradients(embedder: GraceEmbedder) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in embedder.writer.model.named_parameters() if p.grad is not None}


class TestForward:
    def test_with_gradients_the_vectors_are_those_of_encode(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        for arguments in ({}, {"rationale": False}):
            found = embedder(embedder.preprocess(QUERIES), **arguments)["sentence_embedding"]
            assert found.requires_grad
            np.testing.assert_allclose(found.detach().numpy(), embedder.encode(QUERIES, **arguments), atol=1e-5)

    def test_given_rationales_pool_to_the_vectors_of_encode(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        given = ["On tides.", "", "<think> a </think>", "x y z", "On rust."]
        features = embedder.preprocess(list(zip(QUERIES, given, strict=True)))
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found = embedder(features)["sentence_embedding"]
            np.testing.assert_allclose(found.detach().numpy(), embedder.encode(QUERIES, rationales=given), atol=1e-5)
        assert new_tokens(embedder) == 0

    def test_features_are_not_changed(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        features = embedder.preprocess(QUERIES)
        before = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in features.items()}
        embedder(features)
        with torch.no_grad():
            embedder(features)
        assert features.keys() == before.keys()
        for name, value in before.items():
            same = features[name] == value
            assert bool(same.all() if isinstance(same, torch.Tensor) else same), name

    def test_features_may_be_sliced_by_rows(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        features = embedder.preprocess([*QUERIES, ""])
        assert not [name for name in features if name.endswith("_input_ids")]
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                whole = embedder(features)["sentence_embedding"].detach()
                parts = []
                for first in range(0, 6, 2):
                    rows = {
                        name: value[first : first + 2] if isinstance(value, torch.Tensor) else value
                        for name, value in features.items()
                    }
                    parts.append(embedder(rows)["sentence_embedding"].detach())
            torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)

    def test_a_prompt_length_collated_to_a_tensor_is_taken(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder()
        features = embedder.preprocess(QUERIES)
        expected = embedder(features)["sentence_embedding"]
        for length in (torch.tensor([features["prompt_length"]]), torch.full((5,), features["prompt_length"])):
            found = embedder({**features, "prompt_length": length})["sentence_embedding"]
            torch.testing.assert_close(found, expected)

    def test_stock_pooling_over_token_states_gives_the_pooled_vector_of_the_engine(
        self, make_embedder: MakeEmbedder
    ) -> None:
        embedder = make_embedder()
        features = embedder.preprocess(QUERIES)
        with torch.no_grad():
            pooled = embedder.writer(features)
            states = embedder.writer(features, token_states=True)
        assert pooled["token_embeddings"].shape == (5, 1, 32)
        assert states["token_embeddings"].shape[1] > states["prompt_length"] > 0
        pooling = Pooling(32, pooling_mode="mean", include_prompt=False)
        torch.testing.assert_close(
            pooling(dict(states))["sentence_embedding"], pooling(dict(pooled))["sentence_embedding"], atol=1e-5, rtol=0
        )


class TestLosses:
    @pytest.mark.parametrize("rationale", [True, False])
    def test_a_stock_loss_reaches_every_weight_and_a_step_changes_the_identity(
        self, make_embedder: MakeEmbedder, rationale: bool
    ) -> None:
        embedder = make_embedder(cache="memory")
        embedder.writer.rationale = rationale
        before, identity = embedder.encode(QUERIES), embedder.fingerprint()
        written = new_tokens(embedder)
        assert (written > 0) == rationale
        loss = MultipleNegativesRankingLoss(embedder)
        optimizer = torch.optim.AdamW(embedder.parameters(), lr=1e-2)
        values = []
        for _ in range(3):
            value = loss([embedder.preprocess(QUERIES), embedder.preprocess(DOCUMENTS)], None)
            values.append(value.detach())
            value.backward()
            found = gradients(embedder)
            assert len(found) == len(list(embedder.writer.model.parameters()))
            assert all(gradient.abs().max() > 0 for gradient in found.values())
            optimizer.step()
            optimizer.zero_grad()
        assert values[2] < values[0]
        assert any(line.startswith("weights: ") for line in embedder.fingerprint().differences(identity))
        assert np.abs(embedder.encode(QUERIES) - before).max() > 1e-3
        if not rationale:
            assert new_tokens(embedder) == 0

    def test_gradients_are_those_of_one_sequence_at_a_time(self, make_embedder: MakeEmbedder) -> None:
        """Right padding and the prefix must not leak into gradients."""
        embedder = make_embedder()
        model, prefix = embedder.writer.model, len(embedder.writer.prompt(None).prefix_ids)
        target = torch.arange(32.0)
        rationales = embedder.rationales(QUERIES)
        (embedder(embedder.preprocess(QUERIES))["sentence_embedding"] @ target).sum().backward()
        found = gradients(embedder)
        model.zero_grad()
        for text, rationale in zip(QUERIES, rationales, strict=True):
            ids = [*embedder.preprocess([text])["input_ids"][0].tolist(), *rationale.token_ids]
            mean = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, prefix:].mean(0)
            (mean / mean.norm() @ target).backward()
        for name, gradient in gradients(embedder).items():
            torch.testing.assert_close(found[name], gradient, atol=1e-3, rtol=1e-4)

    @pytest.mark.parametrize("rationale", [True, False])
    def test_gradcache_gives_the_gradients_of_one_large_batch(
        self, make_embedder: MakeEmbedder, rationale: bool
    ) -> None:
        embedder = make_embedder(cache="memory")
        embedder.writer.rationale = rationale
        features = [embedder.preprocess(QUERIES), embedder.preprocess(DOCUMENTS)]
        MultipleNegativesRankingLoss(embedder)(features, None).backward()
        expected = gradients(embedder)
        embedder.zero_grad()
        CachedMultipleNegativesRankingLoss(embedder, mini_batch_size=2)(features, None).backward()
        found = gradients(embedder)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rationale", [True, False])
def test_the_stock_trainer_trains_and_writes_nothing_before_its_first_step(
    make_embedder: MakeEmbedder, tmp_path: Path, rationale: bool
) -> None:
    pytest.importorskip("accelerate", reason="the trainer of sentence-transformers needs accelerate: extra 'train'")
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import TrainerCallback

    embedder = make_embedder()
    embedder.writer.rationale = rationale
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            seen.append(new_tokens(embedder))

    trainer = SentenceTransformerTrainer(
        model=embedder,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=3,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="steps",
            save_steps=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": QUERIES, "positive": DOCUMENTS}),
        loss=MultipleNegativesRankingLoss(embedder),
        callbacks=[Watch()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert seen[0] == 0 and (seen[1] > 0) == rationale
    after = embedder.encode(QUERIES)
    assert np.abs(after - make_embedder().encode(QUERIES, rationale=rationale)).max() > 1e-4
    again = make_embedder(tmp_path / "checkpoint-2")
    assert again.writer.rationale == rationale
    np.testing.assert_allclose(again.encode(QUERIES), after, atol=1e-5)
