"""GraceEmbedder as a SentenceTransformer: what encode takes and what it gives back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import quantize_embeddings

from grace_retrieval import DEFAULT_PROMPT, DOCUMENT_PROMPT, QUERY_PROMPT, InputError, Rationale
from grace_retrieval.rationale_transformer import RationaleTransformer

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

TEXTS = [
    "What causes ocean tides?",
    "The moon's gravity pulls on the oceans.",
    "Bread rises because yeast makes gas.",
    "  leading spaces, and\nnewlines\n",
]


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder()


def by_stock_means(embedder: GraceEmbedder, text: str, system_prompt: str, max_new_tokens: int = 8) -> np.ndarray:
    """The method as its paper says it, with nothing but tokenizer and model of transformers."""
    tokenizer, model = embedder.tokenizer, embedder.writer.model
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before = whole[: whole.index(text)]
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    prefix = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
        )
        if written[0, -1] == tokenizer.eos_token_id:
            written = written[:, :-1]
        states = model(written, output_hidden_states=True).hidden_states[-1][0, prefix:]
    mean = states.double().mean(0).numpy()
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_an_embedding_is_what_stock_generation_and_a_second_pass_give(embedder: GraceEmbedder, text: str) -> None:
    np.testing.assert_allclose(embedder.encode(text), by_stock_means(embedder, text, DEFAULT_PROMPT), atol=1e-5)
    np.testing.assert_allclose(embedder.encode_query(text), by_stock_means(embedder, text, QUERY_PROMPT), atol=1e-5)
    np.testing.assert_allclose(
        embedder.encode_document(text), by_stock_means(embedder, text, DOCUMENT_PROMPT), atol=1e-5
    )


def test_it_is_a_sentence_transformer_of_stock_modules_behind_ours(embedder: GraceEmbedder) -> None:
    assert isinstance(embedder, SentenceTransformer)
    assert [type(module) for module in embedder] == [RationaleTransformer, Pooling, Normalize]
    assert embedder[1].pooling_mode == "mean" and not embedder[1].include_prompt
    assert embedder.get_embedding_dimension() == 32
    assert embedder.max_seq_length == 1024
    embedder.max_seq_length = 200
    assert embedder.writer.max_seq_length == 200
    assert embedder.model_card_data.model_name == "tiny-policy"


class TestResults:
    def test_a_list_gives_one_row_a_text_of_length_one(self, embedder: GraceEmbedder) -> None:
        found = embedder.encode(TEXTS)
        assert isinstance(found, np.ndarray) and (found.shape, found.dtype) == ((4, 32), np.float32)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert np.abs(found[0] - found[1]).max() > 0.01

    def test_a_string_is_one_text_and_no_list_of_letters(self, embedder: GraceEmbedder) -> None:
        found = embedder.encode("abc")
        assert found.shape == (32,)
        np.testing.assert_allclose(found, embedder.encode(["abc"])[0], atol=1e-6)

    @pytest.mark.parametrize(
        "container",
        [tuple, iter, np.array, lambda texts: dict.fromkeys(texts).keys()],
        ids=["tuple", "iterator", "array", "keys"],
    )
    def test_any_collection_of_texts_is_taken_in_order(
        self, embedder: GraceEmbedder, container: Callable[[list[str]], Any]
    ) -> None:
        np.testing.assert_allclose(embedder.encode(container(TEXTS)), embedder.encode(TEXTS), atol=1e-6)

    def test_rows_do_not_depend_on_order_batch_size_or_company(self, embedder: GraceEmbedder) -> None:
        expected = embedder.encode(TEXTS)
        np.testing.assert_allclose(embedder.encode(TEXTS[::-1], batch_size=1)[::-1], expected, atol=1e-5)
        np.testing.assert_allclose(np.stack([embedder.encode(text) for text in TEXTS]), expected, atol=1e-5)

    def test_no_texts_give_no_rows_of_the_right_width(self, embedder: GraceEmbedder) -> None:
        assert embedder.encode([]).shape == (0, 32)
        assert embedder.encode([], convert_to_tensor=True).shape == (0, 32)
        assert embedder.encode([], convert_to_numpy=False) == []
        assert embedder.encode([], truncate_dim=8).shape == (0, 8)
        assert embedder.embed_documents([]) == []
        assert embedder.rationales([]) == []

    def test_tensors_on_request(self, embedder: GraceEmbedder) -> None:
        expected = embedder.encode(TEXTS)
        tensor = embedder.encode(TEXTS, convert_to_tensor=True)
        assert isinstance(tensor, torch.Tensor) and tensor.shape == (4, 32)
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
        listed = embedder.encode(TEXTS, convert_to_numpy=False)
        assert isinstance(listed, list) and all(row.shape == (32,) for row in listed)
        np.testing.assert_allclose(torch.stack(listed).numpy(), expected, atol=1e-6)

    def test_fewer_dimensions_have_length_one_too(self, embedder: GraceEmbedder, make_embedder: MakeEmbedder) -> None:
        whole = embedder.encode(TEXTS)[:, :8]
        expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        np.testing.assert_allclose(embedder.encode(TEXTS, truncate_dim=8), expected, atol=1e-6)
        np.testing.assert_allclose(make_embedder(truncate_dim=8).encode(TEXTS), expected, atol=1e-6)
        with embedder.truncate_embeddings(8):
            np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-6)

    @pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
    def test_other_precisions_are_those_of_sentence_transformers(self, embedder: GraceEmbedder, precision: Any) -> None:
        found = embedder.encode(TEXTS, precision=precision)
        expected = quantize_embeddings(embedder.encode(TEXTS), precision=precision)
        assert found.dtype == expected.dtype and found.shape == (4, 32 if "int" in precision else 4)
        np.testing.assert_array_equal(found, expected)

    def test_token_states_pool_to_the_embedding(self, embedder: GraceEmbedder) -> None:
        states = embedder.encode(TEXTS, output_value="token_embeddings")
        prefix = len(embedder.writer.prompt(None).prefix_ids)
        for text, rationale, rows, vector in zip(
            TEXTS, embedder.rationales(TEXTS), states, embedder.encode(TEXTS), strict=True
        ):
            prompt = embedder.preprocess([text])["input_ids"].shape[1]
            assert rows.shape == (prompt + len(rationale.token_ids), 32)
            mean = rows[prefix:].mean(0)
            np.testing.assert_allclose((mean / mean.norm()).numpy(), vector, atol=1e-5)

    def test_token_states_are_computed_in_batches_of_the_size_asked_for(self, embedder: GraceEmbedder) -> None:
        rows: list[int] = []
        embedder.writer.model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
        )
        states = embedder.encode([f"Text {i}" for i in range(10)], output_value="token_embeddings", batch_size=4)
        assert len(states) == 10
        assert max(rows) == 4

    def test_arguments_may_be_given_by_place_as_in_sentence_transformers(self, embedder: GraceEmbedder) -> None:
        states = embedder.encode(TEXTS, "query", None, 32, False, "token_embeddings")
        assert [len(rows.shape) for rows in states] == [2] * 4 and len(states[0]) > 30
        found = embedder.encode(
            TEXTS, "query", None, 32, False, "sentence_embedding", "float32", False, True, "cpu", False
        )
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found.numpy(), embedder.encode_query(TEXTS), atol=1e-6)

    def test_all_features_on_request(self, embedder: GraceEmbedder) -> None:
        found = embedder.encode(TEXTS, output_value=None)
        assert len(found) == 4
        np.testing.assert_allclose(
            np.stack([row["sentence_embedding"].numpy() for row in found]), embedder.encode(TEXTS), atol=1e-5
        )
        assert all(row["token_embeddings"].shape[1] == 32 for row in found)

    def test_lists_of_floats_for_vector_stores(self, embedder: GraceEmbedder) -> None:
        documents, query = embedder.embed_documents(TEXTS), embedder.embed_query(TEXTS[0])
        assert type(documents) is list and type(documents[0]) is list and type(query) is list
        assert {type(number) for row in [*documents, query] for number in row} == {float}
        np.testing.assert_allclose(documents, embedder.encode_document(TEXTS), atol=1e-6)
        np.testing.assert_allclose(query, embedder.encode_query(TEXTS[0]), atol=1e-6)

    async def test_the_event_loop_goes_on_while_texts_are_embedded(self, embedder: GraceEmbedder) -> None:
        ticked = threading.Event()

        def wait_for_a_tick(*_: Any) -> None:
            assert ticked.wait(60), "the event loop stood still"

        embedder.writer.model.base_model.register_forward_pre_hook(wait_for_a_tick)

        async def tick() -> None:
            await asyncio.sleep(0)
            ticked.set()

        documents, query, _ = await asyncio.gather(
            embedder.aembed_documents(TEXTS), embedder.aembed_query(TEXTS[0]), tick()
        )
        np.testing.assert_allclose(documents, embedder.encode_document(TEXTS), atol=1e-5)
        np.testing.assert_allclose(query, embedder.encode_query(TEXTS[0]), atol=1e-5)


class TestWork:
    """How often the policy is asked."""

    def test_a_text_that_occurs_often_is_written_about_once(self, embedder: GraceEmbedder) -> None:
        many = [TEXTS[i % 3] for i in range(50)]
        found = embedder.encode(many)
        assert embedder.writer.engine.statistics()["texts"] == 3
        np.testing.assert_allclose(found, embedder.encode(TEXTS[:3])[[i % 3 for i in range(50)]], atol=1e-5)

    def test_blank_texts_are_zeros_without_a_model_call(self, embedder: GraceEmbedder) -> None:
        def refuse(*_: Any) -> None:
            pytest.fail("the model was called")

        hook = embedder.writer.model.base_model.register_forward_pre_hook(refuse)
        blank = ["", " ", "\n\t \u3000", "\u00a0"]
        assert (embedder.encode(blank) == np.zeros((4, 32), dtype=np.float32)).all()
        assert (embedder.encode("") == np.zeros(32)).all()
        assert embedder.embed_query("") == [0.0] * 32
        assert [str(rationale) for rationale in embedder.rationales(blank)] == [""] * 4
        hook.remove()
        mixed = embedder.encode(["", TEXTS[0], " "])
        np.testing.assert_allclose(mixed[1], embedder.encode(TEXTS[0]), atol=1e-6)
        assert not mixed[[0, 2]].any()

    def test_preprocess_generates_nothing(self, embedder: GraceEmbedder) -> None:
        features = embedder.preprocess([*TEXTS, ""])
        assert embedder.writer.engine.statistics()["forward_passes"] == 0
        per_row = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
        assert {value.shape[0] for value in per_row.values()} == {5}
        assert features["text_length"].tolist()[-1] == 0
        assert isinstance(features["prompt_length"], int)

    @pytest.mark.parametrize("asked", [None, True, False])
    def test_progress_is_shown_if_asked_for_only(
        self, embedder: GraceEmbedder, capfd: pytest.CaptureFixture[str], asked: bool | None
    ) -> None:
        with_info = logging.getLogger("sentence_transformers").getEffectiveLevel()
        capfd.readouterr()
        logging.getLogger("sentence_transformers").setLevel(logging.INFO)  # where stock models start to show bars
        try:
            embedder.encode([f"Text {i}" for i in range(120)], show_progress_bar=asked)
        finally:
            logging.getLogger("sentence_transformers").setLevel(with_info)
        shown = capfd.readouterr()
        assert ("120/120" in shown.err) == bool(asked)
        assert ("it/s" in shown.err or "text/s" in shown.err) == bool(asked) and not shown.out


class TestPrompts:
    def test_roles_have_prompts_of_their_own(self, embedder: GraceEmbedder) -> None:
        assert embedder.prompts == {"query": QUERY_PROMPT, "document": DOCUMENT_PROMPT}
        plain, query, document = (
            embedder.encode("tide"),
            embedder.encode_query("tide"),
            embedder.encode_document("tide"),
        )
        assert min(np.abs(a - b).max() for a, b in [(plain, query), (plain, document), (query, document)]) > 1e-3
        np.testing.assert_allclose(embedder.encode("tide", prompt=QUERY_PROMPT), query, atol=1e-6)
        np.testing.assert_allclose(embedder.encode("tide", prompt_name="document"), document, atol=1e-6)

    def test_one_system_prompt_for_everything(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(system_prompt="Say what it is.")
        plain = embedder.encode("tide")
        np.testing.assert_allclose(embedder.encode_query("tide"), plain, atol=1e-6)
        np.testing.assert_allclose(embedder.encode_document("tide"), plain, atol=1e-6)
        np.testing.assert_allclose(plain, by_stock_means(embedder, "tide", "Say what it is."), atol=1e-5)

    def test_prompts_may_be_given_by_name(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(prompts={"query": "Ask.", "topic": "Name the topic."}, default_prompt_name="topic")
        for found, prompt in [
            (embedder.encode_query("tide"), "Ask."),
            (embedder.encode_document("tide"), DOCUMENT_PROMPT),
            (embedder.encode("tide"), "Name the topic."),
        ]:
            np.testing.assert_allclose(found, by_stock_means(embedder, "tide", prompt), atol=1e-5)

    def test_modules_put_together_by_hand_have_the_prompts_of_roles_too(self, embedder: GraceEmbedder) -> None:
        built = type(embedder)(None, modules=list(embedder), cache=None)
        np.testing.assert_allclose(built.encode("tide"), embedder.encode("tide"), atol=1e-6)
        np.testing.assert_allclose(built.encode_query("tide"), embedder.encode_query("tide"), atol=1e-6)
        np.testing.assert_allclose(built.encode_document("tide"), embedder.encode_document("tide"), atol=1e-6)

    def test_another_chat_template_is_used_from_then_on(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        before, identity = embedder.encode("tide"), embedder.fingerprint()
        embedder.tokenizer.chat_template = embedder.tokenizer.chat_template.replace(
            "'\n' + m['content']", "': ' + m['content']"
        )
        after = embedder.encode("tide")
        assert np.abs(after - before).max() > 1e-4
        assert embedder.fingerprint().differences(identity)


class TestRationales:
    def test_rationales_are_what_the_policy_wrote(self, embedder: GraceEmbedder) -> None:
        found = embedder.rationales([*TEXTS, TEXTS[0], ""], role="document")
        assert len(found) == 6 and all(isinstance(rationale, Rationale) for rationale in found)
        assert found[0] == found[4] and found[5] == Rationale(
            text="", token_ids=(), truncated=False, text_truncated=False
        )
        assert embedder.writer.engine.statistics()["texts"] == 4
        for rationale in found[:4]:
            assert rationale.text == embedder.tokenizer.decode(list(rationale.token_ids), skip_special_tokens=True)
            assert rationale.truncated == (len(rationale.token_ids) == 8) and not rationale.text_truncated

    def test_a_string_counts_as_a_list_of_one(self, embedder: GraceEmbedder) -> None:
        (rationale,) = embedder.rationales("tide", role="query")
        assert rationale == embedder.rationales(["tide"], role="query")[0]

    @pytest.mark.parametrize("role", [None, "query", "document"])
    def test_the_written_rationales_given_back_give_the_same_embeddings(
        self, embedder: GraceEmbedder, role: Any
    ) -> None:
        encode = {None: embedder.encode, "query": embedder.encode_query, "document": embedder.encode_document}[role]
        expected, written = encode(TEXTS), embedder.rationales(TEXTS, role=role)
        before = embedder.writer.engine.statistics()["new_tokens"]
        np.testing.assert_allclose(encode(TEXTS, rationales=written), expected, atol=1e-5)
        assert embedder.writer.engine.statistics()["new_tokens"] == before

    def test_given_strings_are_embedded_as_they_are(self, embedder: GraceEmbedder) -> None:
        given = ["<think> The moon. </think> On tides.", "", "x", "Something else altogether."]
        found = embedder.encode(TEXTS, rationales=given)
        for text, rationale, row in zip(TEXTS, given, found, strict=True):
            np.testing.assert_allclose(embedder.encode(text, rationales=rationale), row, atol=1e-5)
        np.testing.assert_allclose(found[1], embedder.encode(TEXTS[1], rationale=False), atol=1e-5)
        other = embedder.encode(TEXTS[0], rationales="On bread.")
        assert np.abs(other - found[0]).max() > 1e-3

    def test_the_same_text_may_be_given_two_rationales(self, embedder: GraceEmbedder) -> None:
        one, other, again = embedder.encode(["tide"] * 3, rationales=["On tides.", "On bread.", "On tides."])
        assert np.abs(one - other).max() > 1e-3 and (one == again).all()

    def test_without_rationales_nothing_is_written(self, embedder: GraceEmbedder) -> None:
        bare = embedder.encode(TEXTS, rationale=False)
        assert embedder.writer.engine.statistics()["new_tokens"] == 0
        assert np.abs(bare - embedder.encode(TEXTS)).max() > 1e-3
        for text, row in zip(TEXTS[:3], bare, strict=False):
            expected = embedder.encode(text, rationales="")
            np.testing.assert_allclose(row, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(bare, axis=1), 1, atol=1e-6)

    def test_a_model_may_be_set_to_write_none(self, embedder: GraceEmbedder, make_embedder: MakeEmbedder) -> None:
        bare = embedder.encode(TEXTS, rationale=False)
        np.testing.assert_allclose(make_embedder(max_new_tokens=0).encode(TEXTS), bare, atol=1e-6)
        embedder.writer.rationale = False
        np.testing.assert_allclose(embedder.encode(TEXTS), bare, atol=1e-6)
        np.testing.assert_allclose(embedder.encode(TEXTS, rationale=True), make_embedder().encode(TEXTS), atol=1e-6)

    @pytest.mark.parametrize("given", [[], ["one"], ["one"] * 5, "one"], ids=str)
    def test_one_rationale_a_text_or_an_error(self, embedder: GraceEmbedder, given: Any) -> None:
        with pytest.raises(InputError, match=rf"{len(given) if isinstance(given, list) else 1} rationales for 4 texts"):
            embedder.encode(TEXTS, rationales=given)

    def test_a_rationale_that_is_no_string_or_too_long_is_refused(self, embedder: GraceEmbedder) -> None:
        with pytest.raises(InputError, match="rationale 1 is NoneType"):
            embedder.encode(TEXTS[:2], rationales=["x", None])  # type: ignore[list-item]
        with pytest.raises(InputError, match=r"given rationale has \d+ tokens; at most 1024 fit"):
            embedder.encode("tide", rationales="word " * 3000)

    def test_sampling_is_the_same_in_any_batch_and_another_seed_writes_another(
        self, make_embedder: MakeEmbedder
    ) -> None:
        one = make_embedder(temperature=1.0, seed=1)
        alone = [one.rationales(text)[0] for text in TEXTS]
        assert one.rationales(TEXTS[::-1])[::-1] == alone == make_embedder(temperature=1.0, seed=1).rationales(TEXTS)
        other = make_embedder(temperature=1.0, seed=2).rationales(TEXTS)
        assert all(a.token_ids != b.token_ids for a, b in zip(alone, other, strict=True))
