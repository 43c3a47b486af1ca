"""Explanations as text, HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

if TYPE_CHECKING:
    from grace_retrieval import Explanation, GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

QUERY = "What causes <b>tides</b>?"
TEXT = 'The moon\'s gravity.\n\n<script>alert(1)</script> & "oceans" 🙂 日本'
RATIONALE = "<think> </style></script><img src=x onerror=alert(2)> </think> On 'tides'."


@pytest.fixture
def explanation(make_embedder: MakeEmbedder) -> Explanation:
    embedder = make_embedder(cache="memory")
    return embedder.explain(QUERY, [TEXT, "Bread rises."], document_rationales=[RATIONALE, None])[0]


class Page(HTMLParser):
    """Elements of a page, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class TestHtml:
    @pytest.mark.parametrize("page", [True, False])
    def test_everything_is_escaped_and_nothing_is_fetched(self, explanation: Explanation, page: bool) -> None:
        found = Page(explanation.to_html(page=page))
        for shown in (QUERY, TEXT, RATIONALE):
            assert shown in found.text
        assert len(found.of("script")) == 1 and not found.of("img") and not found.of("b") == []
        allowed = {None, "data:,"}
        for _, attributes in found.elements:
            assert attributes.get("src") is None and attributes.get("href") in allowed
            assert not any(name.startswith("on") for name in attributes)
        html = explanation.to_html(page=page)
        assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html

    def test_a_fragment_is_no_page_and_is_what_notebooks_show(self, explanation: Explanation) -> None:
        fragment = explanation.to_html(page=False)
        assert "<html" not in fragment and "<body" not in fragment and "Content-Security-Policy" not in fragment
        assert explanation._repr_html_() == fragment
        assert explanation.to_html().startswith("<!DOCTYPE html>")

    def test_words_carry_their_numbers_and_partners(self, explanation: Explanation) -> None:
        words = [span for span in Page(explanation.to_html()).of("span") if "w" in (span.get("class") or "").split()]
        shown = [w for side in (explanation.query, explanation.document) for w in side.words if _visible(side, w)]
        assert len(words) == len(shown)
        for span, word in zip(words, shown, strict=True):
            assert float(span["data-w"] or "") == pytest.approx(word.weight, abs=6e-5)
            assert float(span["data-c"] or "") == pytest.approx(word.contribution, abs=6e-5)
            assert (span.get("data-p") or "").split() == [str(partner.word) for partner in word.partners]
            assert ("up" in (span["class"] or "").split()) == (word.weight > 0)

    def test_who_wrote_the_rationale_is_said(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(cache="memory")
        written = embedder.explain("tide", "moon")
        assert written.to_html().count("written by the model, not a quotation") == 2
        given = embedder.explain("tide", "moon", document_rationales="mine", query_rationale="mine")
        assert "written by the model" not in given.to_html() and given.to_html().count("given by the caller") == 2
        assert "Rationale (given by the caller)" in str(given)
        bare = embedder.explain("tide", "moon", rationale=False)
        assert "Rationale" not in Page(bare.to_html()).text and "Rationale" not in str(bare)

    def test_a_text_that_was_shortened_shows_what_was_cut(self, make_embedder: MakeEmbedder) -> None:
        embedder = make_embedder(max_seq_length=300, on_truncation="ignore")
        text = "word " * 150 + "the end"
        found = embedder.explain("tide", text)
        assert "not shown to the model" in " ".join(str(found).split())
        page = Page(found.to_html())
        assert any(span.get("class") == "cut" for span in page.of("span")) and text in page.text


class TestTerminal:
    def test_it_can_be_read_without_colour(self, explanation: Explanation) -> None:
        shown = str(explanation)
        assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 100
        assert f"score {explanation.score:.4f}   rank {explanation.rank} of 2" in shown
        assert f"{explanation.document.shares['rationale']:.4f}" in shown
        assert f"{explanation.without_document_rationale.score:.4f}" in shown
        assert "▲" in shown and "▼" in shown
        for line in TEXT.splitlines():
            assert line in shown.replace("▲", "").replace("▼", "")
        best = max(explanation.query.words, key=lambda word: word.weight)
        assert f"▲{QUERY[best.start : best.end]}" in shown or best.part == "rationale"

    def test_rich_prints_it_in_colour(self, explanation: Explanation) -> None:
        console = Console(force_terminal=True, width=120, color_system="truecolor")
        with console.capture() as captured:
            console.print(explanation)
        assert "\x1b[" in captured.get()

    def test_what_a_terminal_would_obey_is_shown_instead(self, make_embedder: MakeEmbedder) -> None:
        found = make_embedder().explain("a\x1b[2Jb", "tide \x07 \x9b31m", document_rationales="\x1b]0;x\x07")
        assert not {"\x1b", "\x07", "\x9b"} & set(str(found))
        assert "␛[2J" in str(found).replace("▲", "").replace("▼", "")

    def test_one_line_for_lists(self, explanation: Explanation) -> None:
        assert repr(explanation).startswith(f"Explanation(score={explanation.score:.4f}, query='What causes")
        assert "\n" not in repr(explanation)


class TestJson:
    def test_it_survives_json_and_adds_up(self, explanation: Explanation) -> None:
        found = json.loads(json.dumps(explanation.to_dict()))
        assert found == explanation.to_dict() and found["schema_version"] == 1
        for name, side in (("query", explanation.query), ("document", explanation.document)):
            tokens = found[name]["tokens"]
            assert sum(token["contribution"] for token in tokens) == pytest.approx(found["score"], abs=1e-12)
            assert sum(found[name]["shares"].values()) == pytest.approx(found["score"], abs=1e-12)
            assert [token["part"] for token in tokens] == list(side.parts)
            sources = {"text": found[name]["text"], "rationale": found[name]["rationale"]}
            for token in tokens:
                if token["part"] == "template":
                    assert token["start"] is token["end"] is None
                else:
                    assert sources[token["part"]][token["start"] : token["end"]] == token["text"]
        assert found["rank"] == explanation.rank and found["documents"] == 2
        assert set(found["pairs"][0]) == {"query", "document", "contribution", "weight"}

    def test_every_field_is_documented(self, explanation: Explanation) -> None:
        from pathlib import Path

        page = (Path(__file__).parents[2] / "docs" / "explanations.md").read_text(encoding="utf-8")
        found = explanation.to_dict()
        names = {*found, *found["query"], *found["query"]["tokens"][0], *found["query"]["words"][0], *found["pairs"][0]}
        assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def _visible(side: object, word: object) -> bool:
    text = side.text if word.part == "text" else side.rationale.text  # type: ignore[attr-defined]
    return bool(text[word.start : word.end].strip())  # type: ignore[attr-defined]
