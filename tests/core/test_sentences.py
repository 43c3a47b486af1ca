"""Rationales of so many sentences: what ends one, where each engine stops, and whose rows they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, InputError, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.corpus.document import Document
from grace_retrieval.engines.plain import run_plain
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.indexing.build import build_index
from grace_retrieval.indexing.index import GraceIndex
from grace_retrieval.sentences import sentence_end
from grace_retrieval.settings import EmbedderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MakeEmbedder = Callable[..., GraceEmbedder]

TEXTS = ["Bread rises because yeast turns sugar into gas.", "Tides follow the moon.", "Glass is sand that has cooled."]


@pytest.fixture(scope="module")
def nano() -> GraceEmbedder:
    """A policy that writes sentences: its rationales have one about the subject, and one more."""
    return GraceEmbedder("grace-nano", cache=None, device="cpu", max_new_tokens=80)


@pytest.fixture
def tiny(make_embedder: MakeEmbedder) -> GraceEmbedder:
    """A policy that writes whatever comes, so that lines and sentences end now and then."""
    return make_embedder(max_new_tokens=200)


@pytest.fixture
def requests(tiny: GraceEmbedder) -> list[RationaleRequest]:
    texts = tiny.pipeline.render(TEXTS)
    return [text.request(200, sample) for text in texts for sample in range(4)]


def run(engine: Any, asked: Sequence[RationaleRequest], sampling: SamplingOptions) -> list[RationaleOutput]:
    found = dict(engine.run(asked, sampling))
    return [found[place] for place in range(len(asked))]


def spoken(words: str) -> PreTrainedTokenizerBase:
    """A tokenizer that takes the space from the first word of a text, as those of Llama 2 and Gemma do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = dict.fromkeys(["<unk>", "\u2581a", *(piece for piece in words.split())])
    found = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>")


class TestRule:
    @pytest.mark.parametrize(
        ("kept", "left"),
        [
            ("Tides follow the moon.", " The sun has a hand in them."),
            ("Do tides follow the moon?", " They do."),
            ('He said that "tides follow the moon."', " She did not."),
            ("It follows the moon (or the sun, or both.)", " 2020 was another year."),
            ("Tides follow the moon…", " Or the sun."),
            ("The tides of the moon", "\nThe tides of the sun."),
            ("Tides follow the moon.\n\n", "And the sun."),
            ("Tides of 3.5 m follow the moon, e.g. in Wales, vs. none in the Baltic.", " There are more."),
            ("1. The moon draws the sea.", " 2. The sun does."),
            ("月が海を引く。", "太陽も引く。"),
            ("**Tides follow the moon.**", " So does the sea."),
            ("Here is a sentence about it:\n\nTides follow the moon.", " The sun has a hand in them."),
            ("The U.S. Army and J. R. R. Tolkien knew the tides.", " They did."),
            ("<think> It is about tides. They are water. </think> Tides follow the moon.", " The sun does too."),
            ("月说：“海在动。”", "太阳也动。"),  # noqa: RUF001
        ],
    )
    def test_a_sentence_ends_where_the_next_begins(self, nano: GraceEmbedder, kept: str, left: str) -> None:
        tokenizer = nano.tokenizer
        first, tokens = (tokenizer.encode(text, add_special_tokens=False) for text in (kept, kept + left))
        assert tokens[: len(first)] == first, "or the tokenizer joins the two"
        end = sentence_end(tokenizer, tokens, 1)
        assert end is not None and end - len(first) in (0, 1), "white space alone may be a token"
        assert str(tokenizer.decode(tokens[:end])).rstrip() == kept.rstrip()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Tides follow the moon.",
            "Llama-3.2 and Gemma-2.0 read 3.14 as a number",
            "tides, i.e. the sea, et al. follow it",
            "1. The moon",
            "Dr. Moon",
            "so . . . what",
            "Tides follow the moon.  then the sun",
            "<think> Tides follow the moon. The sun has a hand in them.\nIt has.",
            "Here is a short sentence about the tides:\n\n",
        ],
    )
    def test_what_is_no_end(self, nano: GraceEmbedder, text: str) -> None:
        assert sentence_end(nano.tokenizer, nano.tokenizer.encode(text, add_special_tokens=False), 1) is None

    @pytest.mark.parametrize(("most", "kept"), [(1, "One is the first."), (2, "One is the first. Two is the second.")])
    def test_sentences_are_counted(self, nano: GraceEmbedder, most: int, kept: str) -> None:
        text = "One is the first. Two is the second. Three is the third."
        tokens = nano.tokenizer.encode(text, add_special_tokens=False)
        assert nano.tokenizer.decode(tokens[: sentence_end(nano.tokenizer, tokens, most)]) == kept
        assert sentence_end(nano.tokenizer, tokens, 3) is None

    def test_a_space_that_belongs_to_the_word_behind_it_is_seen(self) -> None:
        tokenizer = spoken("\u2581Tides \u2581follow \u2581the \u2581moon. \u2581The \u2581e.g. \u2581sun")
        for text, kept in (("Tides follow the moon. The", 4), ("Tides follow the e.g. sun", None)):
            tokens = [tokenizer.get_vocab()["\u2581" + word] for word in text.split()]
            assert tokenizer.decode(tokens[4:]) == text.split()[4], "alone it has lost its space"
            assert sentence_end(tokenizer, tokens, 1) == kept

    def test_a_character_is_kept_whole(self, nano: GraceEmbedder) -> None:
        """White space and brackets of several tokens: what the first token is of is known with the last."""
        tokenizer = nano.tokenizer
        for text in ("Tides follow the moon.\u3000They do follow it.", "「月が海を引く。」太陽も引く。月も引く。"):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            end = sentence_end(tokenizer, tokens, 1)
            assert "\ufffd" not in tokenizer.decode(tokens[:end])


class TestEngines:
    @pytest.mark.parametrize("draft", [True, False])
    @pytest.mark.parametrize("sampling", [SamplingOptions(temperature=heat, seed=3) for heat in (1.0, 9.0)])
    def test_they_stop_where_the_whole_rationale_would_be_cut(
        self, tiny: GraceEmbedder, requests: list[RationaleRequest], sampling: SamplingOptions, draft: bool
    ) -> None:
        engine = TransformersEngine(tiny.pipeline.module, tokenizer=tiny.tokenizer, draft=draft)
        whole = run(engine, requests, sampling)
        outputs = run(engine, requests, replace(sampling, max_sentences=1))
        cut = 0
        for asked, output, before in zip(requests, outputs, whole, strict=True):
            end = sentence_end(tiny.tokenizer, before.token_ids, 1)
            assert output.token_ids == before.token_ids[:end]
            assert output.finish_reason == ("stop" if end is not None else before.finish_reason)
            assert output.end_token == (None if end is not None else before.end_token)
            given = replace(asked, rationale_ids=output.token_ids, max_new_tokens=0)
            np.testing.assert_allclose(output.vector, run(engine, [given], sampling)[0].vector, atol=1e-4)
            plain = run_plain(
                engine.model, asked, replace(sampling, max_sentences=1), engine.end_tokens, tiny.tokenizer
            )
            assert (plain.token_ids, plain.finish_reason) == (output.token_ids, output.finish_reason)
            cut += end is not None
        assert cut, "or it shows nothing"

    def test_circles_and_sentences_end_what_they_meet_first(
        self, tiny: GraceEmbedder, requests: list[RationaleRequest]
    ) -> None:
        engine = TransformersEngine(tiny.pipeline.module, tokenizer=tiny.tokenizer)
        one = SamplingOptions(temperature=9.0, max_sentences=1)
        for plain, watched in zip(
            run(engine, requests, one), run(engine, requests, replace(one, stop_repeats=True)), strict=True
        ):
            assert plain.token_ids == watched.token_ids
            np.testing.assert_allclose(plain.vector, watched.vector, atol=1e-5)

    def test_without_a_tokenizer_it_is_refused(self, tiny: GraceEmbedder, requests: list[RationaleRequest]) -> None:
        engine = TransformersEngine(tiny.pipeline.module, end_tokens=[0])
        with pytest.raises(InputError, match=r"max_sentences=2: the engine was made without a tokenizer"):
            run(engine, requests, SamplingOptions(max_sentences=2))


class TestEmbedder:
    def test_rationales_are_whole_sentences_that_count_as_ended(self, nano: GraceEmbedder) -> None:
        embedder = GraceEmbedder("grace-nano", cache="memory", device="cpu", max_new_tokens=80, max_sentences=1)
        for _ in ("written", "from the cache"):
            for rationale, before in zip(
                embedder.rationales(TEXTS, "document"), nano.rationales(TEXTS, "document"), strict=True
            ):
                assert before.text.startswith(rationale.text) and rationale.text.endswith(".")
                assert rationale.summary and rationale.reasoning, "which is not counted"
                assert not rationale.truncated and not rationale.circled

    def test_with_and_without_are_two_identities(self, make_embedder: MakeEmbedder) -> None:
        found = [make_embedder(max_sentences=most) for most in (None, 0, 1, 2)]
        one, other, first, second = (embedder.fingerprint("document") for embedder in found)
        assert one.digest() == other.digest(), "what was made before is found again"
        assert first.differences(one) == ["generation.max_sentences: [1, 1] here, absent there"]
        assert second.differences(first) == ["generation.max_sentences: [2, 1] here, [1, 1] there"]
        for mode in (False, "echo"):
            assert len({embedder.vector_identity(mode).digest() for embedder in found}) == 1

    @pytest.mark.parametrize("most", [0, 2])
    def test_it_is_saved_with_the_model(self, make_embedder: MakeEmbedder, tmp_path: Path, most: int) -> None:
        embedder = make_embedder(max_sentences=most)
        embedder.save_pretrained(str(tmp_path / "saved"))
        saved = json.loads((tmp_path / "saved" / "grace_config.json").read_text(encoding="utf-8"))
        assert saved.get("max_sentences", 0) == most
        again = GraceEmbedder(tmp_path / "saved", cache=None, device="cpu")
        assert again.vector_identity().digest() == embedder.vector_identity().digest()
        other = GraceEmbedder(tmp_path / "saved", cache=None, device="cpu", max_sentences=3)
        assert other.pipeline.options.sampling.max_sentences == 3

    @pytest.mark.parametrize("most", [None, 2])
    def test_an_index_is_opened_as_it_was_built(
        self, make_embedder: MakeEmbedder, tmp_path: Path, most: int | None
    ) -> None:
        """Also one whose model was saved with another number."""
        make_embedder(max_sentences=1).save_pretrained(str(tmp_path / "saved"))
        embedder = make_embedder(tmp_path / "saved", max_sentences=0 if most is None else most)
        build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=embedder)
        opened = GraceIndex.open(tmp_path / "index").embedder
        assert opened.pipeline.options.sampling.max_sentences == (most or 0)

    @pytest.mark.parametrize("most", [0, 2])
    def test_settings_give_the_same_embedder(self, make_embedder: MakeEmbedder, tmp_path: Path, most: int) -> None:
        """Whatever the model was saved with: as workers, stores and files of settings open it."""
        make_embedder(max_sentences=1).save_pretrained(str(tmp_path / "saved"))
        embedder = make_embedder(tmp_path / "saved", max_sentences=most)
        settings = json.loads(EmbedderSettings.of(embedder).model_dump_json())
        assert settings["max_sentences"] == most
        again = EmbedderSettings(**settings)
        assert again.vector_identity().digest() == embedder.vector_identity().digest()

    def test_numbers_of_numpy_are_numbers(self, make_embedder: MakeEmbedder, tmp_path: Path) -> None:
        embedder = make_embedder(max_sentences=np.int64(1))
        embedder.save_pretrained(str(tmp_path / "saved"))
        assert embedder.fingerprint().digest() == make_embedder(max_sentences=1).fingerprint().digest()

    @pytest.mark.parametrize("most", [-1, 1.5, "2", True])
    def test_what_is_no_number_is_refused(self, make_embedder: MakeEmbedder, most: Any) -> None:
        with pytest.raises(InputError, match=r"max_sentences=.*give 0"):
            make_embedder(max_sentences=most)


def test_on_the_command_line(tiny_policy: Path, tmp_path: Path) -> None:
    def grace(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "grace_retrieval", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "index"
    corpus.write_text('{"id": "a", "text": "Tides follow the moon."}\n', encoding="utf-8")
    options = ("--model", str(tiny_policy), "--max-new-tokens", "8", "--device", "cpu", "--max-sentences", "1")
    built = grace("index", "build", str(corpus), "--out", str(out), *options)
    assert built.returncode == 0, built.stderr
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["embedder"]["max_sentences"] == 1
    found = grace("index", "search", str(out), "tides", "--json")
    assert found.returncode == 0 and '"a"' in found.stdout, found.stderr
    again = grace("index", "build", str(corpus), "--add", "--out", str(out), "--max-sentences", "2")
    assert again.returncode == 1 and "leave out --max-sentences" in again.stderr
    written = grace("rationale", "Tides follow the moon.", "--json", *options)
    assert written.returncode == 0 and json.loads(written.stdout)["truncated"] in (True, False), written.stderr
