"""A contamination report as Markdown, the pairs side by side."""

from __future__ import annotations

from collections.abc import Iterator

from sao.results.contamination import Contamination, TextBesideItem
from sao.tables import Column, markdown_table

LONGEST = 300
"""Characters of a text in the table."""


def show_contamination(report: Contamination) -> str:
    """The report as Markdown: the counts, then the pairs side by side."""
    lines = counts_lines(report)
    for name, found in report.benchmarks.items():
        lines += ["", f"{name}: {found.source}, {found.digest}"] if found.source else []
        lines += _pairs_table(f"{name}: contaminated texts", found.overlaps)
        lines += _pairs_table(f"{name}: most similar, not contaminated by this measure", found.candidates)
    lines += ["", report.note] if report.note else []
    return "\n".join(lines)


def counts_lines(report: Contamination) -> list[str]:
    """What was looked at, and how many items of each evaluation set were found."""
    columns = [
        Column(head) for head in ("evaluation set", "items", "contaminated items", "contaminated texts")
    ]
    rows = [
        [name, f"{found.items:,}", f"{found.contaminated_items:,}", f"{found.contaminated_texts:,}"]
        for name, found in report.benchmarks.items()
    ]
    return [
        f"{report.texts:,} texts looked at; one is contaminated by an item where "
        f"{100 * report.max_overlap:g} % of the item's n-grams stand in it.",
        "",
        *markdown_table(columns, rows),
    ]


def _pairs_table(title: str, pairs: list[TextBesideItem]) -> Iterator[str]:
    if not pairs:
        return
    columns = [Column(head) for head in ("share", "ours", "item", "theirs")]
    rows = [
        [f"{pair.share:.2f}", f"{pair.kind} {pair.id}: {_short(pair.ours)}", pair.item, _short(pair.theirs)]
        for pair in pairs
    ]
    yield from ("", f"### {title}", "", *markdown_table(columns, rows))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "…"
