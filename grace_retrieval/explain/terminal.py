"""An explanation in a terminal: readable without colour, and coloured where there is colour."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from grace_retrieval.explain.explained import PARTS, ExplainedScore, LeftOut, Part, Side

__all__ = ["plain_text", "render"]

RAISES, LOWERS = "▲", "▼"
MARKED = 0.5
"""Words get a mark if their weight is at least this part of the side's largest."""
SHOWN_WORDS = 6
PLAIN_WIDTH = 100

# Control characters, which a terminal would obey, as characters that stand for them.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_PICTURES |= {code: 0xFFFD for code in range(128, 160)}

# A blue and an orange that readers with any kind of colour vision tell apart, also from black and white.
RAISES_COLOR, LOWERS_COLOR = "color(208)", "color(75)"


def plain_text(explanation: ExplainedScore) -> str:
    """The explanation as text of 100 columns, without colour."""
    console = Console(file=StringIO(), width=PLAIN_WIDTH, color_system=None, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(render(explanation))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def render(explanation: ExplainedScore) -> RenderableType:
    """What rich prints for an explanation."""
    parts: list[RenderableType] = [_heading(explanation), _shares(explanation), Text()]
    for name, side, other in (
        ("Query", explanation.query, explanation.document),
        ("Document", explanation.document, explanation.query),
    ):
        parts += _side(name, side)
        parts.append(_words(side, other))
    parts.append(
        Text(
            f"{RAISES} more, {LOWERS} less for the match than the rest of the same side (weight: contribution less its "
            "baseline). A contribution is a term of a sum, not the effect of a word.",
            style="dim",
        )
    )
    return Group(*parts)


def _heading(explanation: ExplainedScore) -> Text:
    line = Text.assemble("score ", (f"{explanation.score:.4f}", "bold"))
    if explanation.documents > 1:
        line.append(f"   rank {explanation.rank} of {explanation.documents}")
    for name, value in (("id", explanation.id), ("title", explanation.title)):
        if value:
            line.append(f"   {name} {value}".translate(_PICTURES))
    line.append(f"   model {explanation.model_name}", style="dim")
    return line


def _shares(explanation: ExplainedScore) -> Table:
    """What the parts contribute, and the scores without rationales."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("contributions of")
    for part in PARTS:
        table.add_column(part, justify="right")
    table.add_column("sum", justify="right")
    table.add_column("score without its rationale")
    for name, side, left_out in (
        ("query", explanation.query, explanation.without_query_rationale),
        ("document", explanation.document, explanation.without_document_rationale),
    ):
        shares = side.shares
        table.add_row(
            name,
            *(f"{shares[part]:.4f}" for part in PARTS),
            f"{explanation.score:.4f}",
            _change(explanation, left_out),
        )
    table.add_row("both", "", "", "", "", _change(explanation, explanation.without_rationales))
    return table


def _change(explanation: ExplainedScore, left_out: LeftOut) -> str:
    rank = f", rank {explanation.rank} → {left_out.rank}" if explanation.documents > 1 else ""
    return f"{left_out.score:.4f} ({left_out.score - explanation.score:+.4f}{rank})"


def _side(name: str, side: Side) -> list[RenderableType]:
    shown: list[RenderableType] = [
        Text(name, style="bold"),
        Padding(_marked(side, "text") if side.parts else Text("(blank: embedded as zeros)", style="dim"), (0, 0, 0, 2)),
    ]
    if side.rationale.text:
        writer = "written by the model, it may be wrong" if side.written_by_model else "given by the caller"
        cut = "; cut off before its end" if side.rationale.truncated else ""
        shown += [
            Text(f"  Rationale ({writer}{cut})", style="italic"),
            Padding(_marked(side, "rationale"), (0, 0, 0, 2)),
        ]
    return shown


def _marked(side: Side, part: Part) -> Text:
    """A part's text with its words coloured by weight, and the strongest marked."""
    text = (side.text if part == "text" else side.rationale.text).translate(_PICTURES)
    most = _largest_weight(side)
    line, done = Text(), 0
    for word in side.words:
        if word.part != part or not text[word.start : word.end].strip():
            continue
        line.append(text[done : word.start])
        strength = word.weight / most
        if abs(strength) >= MARKED:
            line.append(RAISES if strength > 0 else LOWERS, style=_style(strength))
        line.append(text[word.start : word.end], style=_style(strength))
        done = word.end
    if part == "text" and side.text_end < len(text):
        line.append(text[done : side.text_end])
        line.append("┃ not shown to the model: ", style="dim italic")
        line.append(text[side.text_end :], style="dim strike")
    else:
        line.append(text[done:])
    return line


def _style(strength: float) -> Style:
    """Colour by sign, boldness by size."""
    if abs(strength) < MARKED / 2:
        return Style()
    return Style(color=None, bold=abs(strength) >= MARKED) + Style.parse(RAISES_COLOR if strength > 0 else LOWERS_COLOR)


def _words(side: Side, other: Side) -> Table:
    """The words with the largest weights."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("  words that stand out", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("contribution", justify="right", no_wrap=True, min_width=12)
    table.add_column("weight", justify="right", no_wrap=True, min_width=7)
    table.add_column("agrees most with", overflow="ellipsis", no_wrap=True)
    named = [place for place, word in enumerate(side.words) if word.partners]
    named.sort(key=lambda place: -side.words[place].weight)
    for place in named[:SHOWN_WORDS]:
        word = side.words[place]
        partners = dict.fromkeys(other.word_text(partner.word) for partner in word.partners)
        table.add_row(
            Text(f"  {side.word_text(place)}".translate(_PICTURES)),
            word.part,
            f"{word.contribution:.4f}",
            f"{word.weight:+.4f}",
            Text(", ".join(partners).translate(_PICTURES)),
        )
    table.add_row()
    return table


def _largest_weight(side: Side) -> float:
    return max((abs(word.weight) for word in side.words), default=0.0) or 1.0
