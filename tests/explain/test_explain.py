"""embedder.explain, against embeddings and against transformers alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grace_retrieval import (
    DOCUMENT_PROMPT,
    QUERY_PROMPT,
    InputError,
    NonFiniteEmbeddingError,
    Rationale,
    TruncationWarning,
)

if TYPE_CHECKING:
    from grace_retrieval import Explanation, GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

QUERY = "What causes ocean tides?"
DOCUMENTS = [
    "The moon's gravity pulls on the oceans.",
    "Bread rises because yeast makes gas.",
    "  Leading spaces, naïve 日本 🙂 text,\nand newlines <|im_end|> </think>\n",
    "tide " * 40,
    "x",
]


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder(cache="memory")


def pooled_states(embedder: GraceEmbedder, text: str, system_prompt: str, rationale: bool) -> np.ndarray:
    """States of the pooled tokens, with nothing but tokenizer and model of transformers."""
    tokenizer, model = embedder.tokenizer, embedder.writer.model
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prefix = len(tokenizer(whole[: whole.index(text)], add_special_tokens=False)["input_ids"])
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        if rationale:
            ids = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
            if ids[0, -1] == tokenizer.eos_token_id:
                ids = ids[:, :-1]
        return model(ids, output_hidden_states=True).hidden_states[-1][0, prefix:].double().numpy()


def check_sums(explanation: Explanation) -> None:
    for side in (explanation.query, explanation.document):
        assert side.contributions.dtype == np.float64 and side.contributions.shape == (len(side.tokens),)
        assert side.contributions.sum() == pytest.approx(explanation.score, abs=1e-12)
        assert side.weights.sum() == pytest.approx(0, abs=1e-12)
        assert sum(side.shares.values()) == pytest.approx(explanation.score, abs=1e-12)
        assert len(side.parts) == len(side.tokens) == len(side.spans)


class TestScores:
    @pytest.mark.parametrize("truncate_dim", [None, *range(1, 33)])
    def test_contributions_add_up_to_the_similarity_of_the_embeddings(
        self, embedder: GraceEmbedder, truncate_dim: int | None
    ) -> None:
        found = embedder.explain(QUERY, DOCUMENTS, truncate_dim=truncate_dim)
        expected = embedder.similarity(
            embedder.encode_query([QUERY], truncate_dim=truncate_dim),
            embedder.encode_document(DOCUMENTS, truncate_dim=truncate_dim),
        )[0].numpy()
        np.testing.assert_allclose([one.score for one in found], expected, atol=1e-6)
        for one in found:
            check_sums(one)
            assert one.query.contributions.sum() == pytest.approx(one.score, abs=1e-6)
            assert one.dimension == (truncate_dim or 32)

    def test_the_embedders_own_setting_of_dimensions_is_kept(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(truncate_dim=5)
        found = embedder.explain(QUERY, DOCUMENTS[0])
        expected = embedder.similarity(embedder.encode_query(QUERY), embedder.encode_document(DOCUMENTS[0]))
        assert found.score == pytest.approx(float(expected), abs=1e-6) and found.dimension == 5

    @pytest.mark.parametrize("rationale", [True, False])
    @pytest.mark.parametrize("document", [DOCUMENTS[0], DOCUMENTS[1]])
    def test_contributions_are_those_that_transformers_alone_gives(
        self, embedder: GraceEmbedder, document: str, rationale: bool
    ) -> None:
        found = embedder.explain(QUERY, document, rationale=rationale)
        x = pooled_states(embedder, QUERY, QUERY_PROMPT, rationale)
        y = pooled_states(embedder, document, DOCUMENT_PROMPT, rationale)
        pairs = (x @ y.T) / (len(x) * len(y) * np.linalg.norm(x.mean(0)) * np.linalg.norm(y.mean(0)))
        assert pairs.shape == (len(found.query.tokens), len(found.document.tokens))
        np.testing.assert_allclose(found.query.contributions, pairs.sum(1), atol=1e-6)
        np.testing.assert_allclose(found.document.contributions, pairs.sum(0), atol=1e-6)
        assert found.score == pytest.approx(pairs.sum(), abs=1e-6)
        for pair in found.pairs:
            assert pair.contribution == pytest.approx(pairs[pair.query, pair.document], abs=1e-6)
        centred = pairs - pairs.mean(1, keepdims=True) - pairs.mean(0) + pairs.mean()
        assert [pair.weight for pair in found.pairs] == pytest.approx(
            [centred[pair.query, pair.document] for pair in found.pairs], abs=1e-6
        )
        assert [pair.weight for pair in found.pairs] == sorted((pair.weight for pair in found.pairs), reverse=True)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3", "bloom", "mamba", "opt", "mistral"])
    def test_other_kinds_of_models(
        self, make_model: Any, make_tokenizer: Any, make_embedder: MakeEmbedder, tmp_path: Any, name: str
    ) -> None:
        make_model(name).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        embedder = make_embedder(tmp_path, cache="memory", max_new_tokens=4)
        documents = [*DOCUMENTS[:3], "A text of many words. " * 5]
        vectors, query = embedder.encode_document(documents), embedder.encode_query(QUERY)
        found = embedder.explain(QUERY, documents)
        np.testing.assert_allclose([one.score for one in found], vectors @ query, atol=2e-5)

    def test_batches_change_nothing(self, make_embedder: MakeEmbedder) -> None:
        one, many = make_embedder(max_batch_tokens=1), make_embedder()
        for alone, together in zip(one.explain(QUERY, DOCUMENTS), many.explain(QUERY, DOCUMENTS), strict=True):
            assert alone.document.tokens == together.document.tokens
            np.testing.assert_allclose(alone.document.contributions, together.document.contributions, atol=1e-6)

    def test_training_mode_is_kept_and_does_not_matter(self, embedder: GraceEmbedder) -> None:
        expected = embedder.explain(QUERY, DOCUMENTS[0]).score
        embedder.train()
        assert embedder.explain(QUERY, DOCUMENTS[0]).score == pytest.approx(expected, abs=1e-12)
        assert embedder.writer.model.training

    def test_half_precision_agrees_to_its_rounding(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(model_kwargs={"dtype": "bfloat16"}, cache="memory")
        found = embedder.explain(QUERY, DOCUMENTS[:3])
        expected = embedder.encode_document(DOCUMENTS[:3]) @ embedder.encode_query(QUERY)
        np.testing.assert_allclose([one.score for one in found], expected, atol=2e-2)
        for one in found:
            check_sums(one)

    def test_nan_is_an_error(self, embedder: GraceEmbedder) -> None:
        rationales = embedder.rationales([QUERY], "query") + embedder.rationales([DOCUMENTS[0]], "document")
        with torch.no_grad():
            next(iter(embedder.writer.model.parameters())).fill_(float("nan"))
        with pytest.raises(NonFiniteEmbeddingError, match="float32"):
            embedder.explain(QUERY, DOCUMENTS[0], query_rationale=rationales[0], document_rationales=rationales[1])


class TestWork:
    def test_nothing_is_generated_that_the_cache_holds(self, embedder: GraceEmbedder) -> None:
        embedder.encode_query(QUERY)
        embedder.encode_document(DOCUMENTS)
        before = dict(embedder.writer.engine.statistics())
        embedder.explain(QUERY, DOCUMENTS)
        assert embedder.writer.engine.statistics()["new_tokens"] == before["new_tokens"]
        assert embedder.writer.engine.statistics()["texts"] == before["texts"]

    def test_what_the_cache_lacks_is_written_once_and_kept(self, embedder: GraceEmbedder) -> None:
        embedder.explain(QUERY, DOCUMENTS)
        assert embedder.writer.engine.statistics()["texts"] == 1 + len(DOCUMENTS)
        written = embedder.writer.engine.statistics()["new_tokens"]
        embedder.explain(QUERY, DOCUMENTS)
        embedder.encode_document(DOCUMENTS)
        embedder.encode_query(QUERY)
        assert embedder.writer.engine.statistics()["new_tokens"] == written

    def test_without_rationales_nothing_is_written(self, embedder: GraceEmbedder) -> None:
        found = embedder.explain(QUERY, DOCUMENTS, rationale=False)
        assert embedder.writer.engine.statistics()["new_tokens"] == 0
        vectors = embedder.encode_document(DOCUMENTS, rationale=False)
        np.testing.assert_allclose(
            [one.score for one in found], vectors @ embedder.encode_query(QUERY, rationale=False), atol=1e-6
        )
        assert all(one.document.shares["rationale"] == 0 and not one.document.rationale.text for one in found)
        embedder.writer.rationale = False
        assert embedder.explain(QUERY, DOCUMENTS[0]).score == pytest.approx(found[0].score, abs=1e-6)
        assert embedder.explain(QUERY, DOCUMENTS[0], rationale=True).document.rationale.text

    def test_threads_may_share_an_embedder(self, embedder: GraceEmbedder) -> None:
        expected = [one.score for one in embedder.explain(QUERY, DOCUMENTS)]
        found: list[list[float]] = []
        threads = [
            threading.Thread(target=lambda: found.append([one.score for one in embedder.explain(QUERY, DOCUMENTS)]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for scores in found:
            assert scores == pytest.approx(expected, abs=1e-6)


class TestRationales:
    def test_leaving_them_out_gives_the_scores_of_embeddings_without_them(self, embedder: GraceEmbedder) -> None:
        found = embedder.explain(QUERY, DOCUMENTS)
        full, bare = embedder.encode_document(DOCUMENTS), embedder.encode_document(DOCUMENTS, rationale=False)
        query, bare_query = embedder.encode_query(QUERY), embedder.encode_query(QUERY, rationale=False)
        for name, scores in {
            "without_document_rationale": bare @ query,
            "without_query_rationale": full @ bare_query,
            "without_rationales": bare @ bare_query,
        }.items():
            np.testing.assert_allclose([getattr(one, name).score for one in found], scores, atol=1e-6)

    def test_ranks_are_those_among_the_documents(self, embedder: GraceEmbedder) -> None:
        found = embedder.explain(QUERY, DOCUMENTS)
        scores = [one.score for one in found]
        assert [one.documents for one in found] == [5] * 5
        assert [one.rank for one in found] == [1 + sum(other > score for other in scores) for score in scores]
        bare = [one.without_rationales.score for one in found]
        assert [one.without_rationales.rank for one in found] == [1 + sum(o > s for o in bare) for s in bare]
        for place, one in enumerate(found):
            own = one.without_document_rationale
            others = [score for other, score in enumerate(scores) if other != place]
            assert own.rank == 1 + sum(score > own.score for score in others)
        assert len({one.rank for one in found}) == 5

    def test_equal_documents_share_a_rank(self, embedder: GraceEmbedder) -> None:
        assert [one.rank for one in embedder.explain(QUERY, ["x", "x"], document_rationales=["a", "a"])] == [1, 1]

    def test_given_rationales_are_embedded_as_they_are(self, embedder: GraceEmbedder) -> None:
        given = ["<think> a </think> 🙂 On tides.", "", embedder.rationales([DOCUMENTS[2]], "document")[0]]
        found = embedder.explain(QUERY, DOCUMENTS[:3], document_rationales=given, query_rationale="On the sea.")
        vectors = embedder.encode_document(DOCUMENTS[:3], rationales=given)
        np.testing.assert_allclose(
            [one.score for one in found], vectors @ embedder.encode_query(QUERY, rationales="On the sea."), atol=1e-6
        )
        assert [one.document.rationale.text for one in found[:2]] == given[:2]
        assert [one.document.written_by_model for one in found] == [False, False, True]
        assert not found[0].query.written_by_model
        spans = [tuple(span) for span in found[0].document.spans if span[0] >= 0][-1:]
        assert spans == [(len(given[0]) - 1, len(given[0]))]

    def test_a_rationale_that_is_missing_from_the_given_ones_is_written(self, embedder: GraceEmbedder) -> None:
        found = embedder.explain(QUERY, DOCUMENTS[:2], document_rationales=["On tides.", None])
        assert found[1].document.rationale.token_ids == embedder.rationales([DOCUMENTS[1]], "document")[0].token_ids
        assert embedder.writer.engine.statistics()["texts"] == 2  # the query's and the second document's

    def test_shares_belong_to_their_parts(self, embedder: GraceEmbedder) -> None:
        side = embedder.explain(QUERY, DOCUMENTS[0]).document
        for part in ("text", "template", "rationale"):
            chosen = [c for c, p in zip(side.contributions, side.parts, strict=True) if p == part]
            assert chosen and side.shares[part] == pytest.approx(sum(chosen), abs=1e-12)


class TestSpans:
    def test_tokens_and_words_are_the_characters_of_their_spans(self, embedder: GraceEmbedder) -> None:
        for one in embedder.explain(QUERY, DOCUMENTS):
            for side in (one.query, one.document):
                sources = {"text": side.text, "rationale": side.rationale.text}
                for token, part, (start, end) in zip(side.tokens, side.parts, side.spans.tolist(), strict=True):
                    assert (start, end) == (-1, -1) if part == "template" else sources[part][start:end] == token
                for part, source in sources.items():
                    covered = [False] * len(source)
                    for word in (word for word in side.words if word.part == part):
                        assert not any(covered[word.start : word.end])  # words never share a character
                        covered[word.start : word.end] = [True] * (word.end - word.start)
                    assert all(c or source[place].isspace() for place, c in enumerate(covered))
                assert sum(word.contribution for word in side.words) == pytest.approx(
                    side.shares["text"] + side.shares["rationale"], abs=1e-12
                )
                inside = sorted(token for word in side.words for token in range(word.first, word.stop))
                assert inside == [place for place, part in enumerate(side.parts) if part != "template"]

    def test_partners_are_words_of_the_other_side_strongest_first(self, embedder: GraceEmbedder) -> None:
        one = embedder.explain(QUERY, DOCUMENTS[0])
        x = pooled_states(embedder, QUERY, QUERY_PROMPT, True)
        y = pooled_states(embedder, DOCUMENTS[0], DOCUMENT_PROMPT, True)
        scale = 1 / (len(x) * len(y) * np.linalg.norm(x.mean(0)) * np.linalg.norm(y.mean(0)))
        centred = (x - x.mean(0)) @ (y - y.mean(0)).T * scale
        seen = 0
        for word in one.query.words:
            weights = [partner.weight for partner in word.partners]
            assert weights == sorted(weights, reverse=True) and all(weight > 0 for weight in weights)
            for partner in word.partners:
                other = one.document.words[partner.word]
                expected = centred[word.first : word.stop, other.first : other.stop].sum()
                assert partner.weight == pytest.approx(expected, abs=1e-6)
                seen += 1
        assert seen > 5

    def test_a_text_that_was_shortened_says_where(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(max_seq_length=300, cache="memory")
        text = "naïve words " * 90
        with pytest.warns(TruncationWarning) as warned:
            side = embedder.explain(QUERY, text).document
        assert len([one for one in warned if one.category is TruncationWarning]) == 1
        assert 0 < side.text_end < len(text) and side.rationale.text_truncated
        assert (
            max(end for (_, end), part in zip(side.spans, side.parts, strict=True) if part == "text") == side.text_end
        )
        embedder.writer.on_truncation = "error"
        with pytest.raises(InputError, match="longer than max_seq_length"):
            embedder.explain(QUERY, text)

    def test_surrogates_are_mended_as_in_encode(self, embedder: GraceEmbedder) -> None:
        with pytest.warns(UserWarning, match="surrogate"):
            found = embedder.explain(QUERY, "a \ud83d\ude42 b \ud800")
        assert found.document.text == "a 🙂 b \ufffd"


class TestInput:
    def test_blank_texts_score_zero(self, embedder: GraceEmbedder) -> None:
        blank, text = embedder.explain(" \n", ["", "tide"])
        assert blank.score == text.score == 0.0
        assert not len(blank.document.contributions) and not len(text.query.contributions)
        assert not text.document.contributions.any() and text.pairs == ()
        assert str(text) and text.to_html() and json.dumps(text.to_dict())

    def test_one_document_or_a_list(self, embedder: GraceEmbedder) -> None:
        alone, (listed,) = embedder.explain(QUERY, "tide"), embedder.explain(QUERY, ["tide"])
        assert alone.score == listed.score and alone.rank == alone.documents == 1
        assert embedder.explain(QUERY, []) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((5, "x"), "query 0 is int"),
            ((QUERY, 5), r"int \(5\) cannot be explained: give a string"),
            ((QUERY, ["x", None]), "document 1: NoneType"),
            ((QUERY, b"x"), "bytes"),
        ],
    )
    def test_what_is_no_document_is_refused(self, embedder: GraceEmbedder, arguments: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            embedder.explain(*arguments)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"document_rationales": ["a", "b"]}, "2 document_rationales for 1 documents"),
            ({"document_rationales": [5]}, "document rationale 0 is int"),
            ({"document_rationales": "a", "rationale": False}, "document_rationales is given, but rationale=False"),
            ({"query_rationale": "a", "rationale": False}, "query_rationale is given, but rationale=False"),
            ({"truncate_dim": 0}, "truncate_dim=0: give a whole number from 1 to 32"),
            ({"truncate_dim": 1.5}, "truncate_dim=1.5"),
        ],
    )
    def test_options_that_cannot_be_are_refused(
        self, embedder: GraceEmbedder, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            embedder.explain(QUERY, "tide", **options)

    def test_a_rationale_too_long_is_refused(self, embedder: GraceEmbedder) -> None:
        with pytest.raises(InputError, match="given rationale has"):
            embedder.explain(QUERY, "tide", document_rationales="word " * 3000)

    def test_a_rationale_object_is_shown_as_its_tokens_decode(self, embedder: GraceEmbedder) -> None:
        (own,) = embedder.rationales(["tide"], "document")
        other = Rationale(text="not what the tokens say", token_ids=own.token_ids, truncated=True, text_truncated=False)
        assert embedder.explain(QUERY, "tide", document_rationales=other).document.rationale.text == own.text
