"""Statistics as text: a table of one or two runs, and below it where their data come from, what was dropped,
and topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sao.analysis.stats.measures import (
    AMONG,
    COMPRESSED_BYTES,
    DISTINCT_WORDS,
    LONGEST,
    NEAR,
    VENDI_TEXTS,
)
from sao.results.base import Rate
from sao.results.statistics import RunStatistics, Spread, Statistics, TemplateCounts, TextFigures, Topics
from sao.tables import MISSING, Column, number, percent, percent_with_interval, plain_table

KINDS = {
    "personas": "personas", "prompts": "prompts, as written", "kept_prompts": "prompts, after the filters",
    "answers": "answers",
}  # fmt: skip
"""What the kinds of texts are called."""


def show_statistics(statistics: RunStatistics) -> str:
    """One or two runs: a column each, and below the table the rest of each."""
    runs = list(statistics.runs.items())
    lines = [
        *_figures_table(runs),
        "",
        f"Samples: {DISTINCT_WORDS:,} words for distinct-n, {COMPRESSED_BYTES:,} bytes for compression, "
        f"{VENDI_TEXTS:,} texts for Vendi (or what the table says);\n"
        f"of a text the first {LONGEST:,} characters.",
        *_cautions(runs[0][1], runs[-1][1]),
    ]
    for name, run in runs:
        lines += ["", name, *(f"  {line}" for line in _details(run))]
    return "\n".join(lines)


def _figures_table(runs: list[tuple[str, Statistics]]) -> list[str]:
    columns = [Column(width=36)]
    columns += [Column(name if len(name) < 37 else "…" + name[-35:], "right", width=37) for name, _ in runs]
    rows: list[list[str]] = []
    for kind, title in KINDS.items():
        figures = [_figures(run, kind) for _, run in runs]
        if not any(figures):
            continue
        rows += [[""], [title]]
        for name, cell in ROWS:
            cells = [MISSING if texts is None else cell(texts) for texts in figures]
            if set(cells) != {MISSING}:
                rows.append([f"  {name}", *cells])
    return plain_table(columns, rows)


def _figures(run: Statistics, kind: str) -> TextFigures | None:
    """The figures of one kind of texts, None where there are no such texts."""
    figures: TextFigures | None = getattr(run, kind)
    return figures if figures is not None and figures.n else None


def _among(size: int) -> Callable[[TextFigures], str]:
    return lambda texts: percent(texts.exact_repetition.among[size], 2)


def _distinct(texts: TextFigures) -> str:
    found = texts.distinct
    figures = (found.distinct_1, found.distinct_2, found.distinct_3)
    return _sampled("  ".join(number(figure, 3) for figure in figures), found.words, DISTINCT_WORDS, "words")


def _compression(texts: TextFigures) -> str:
    found = texts.compression
    return _sampled(number(found.ratio, 2), found.bytes, COMPRESSED_BYTES, "bytes")


def _vendi(texts: TextFigures) -> str:
    return _sampled(number(texts.vendi.score, 1), texts.vendi.texts, VENDI_TEXTS, "texts")


def _sampled(figure: str, size: int, wanted: int, unit: str) -> str:
    """A figure, with the size of its sample where that is less than it should be."""
    return figure if size >= wanted else f"{figure} on {size:,} {unit}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    return f"{spread.mean:,.1f}, {spread.median:,.0f} ({spread.p5:,.0f} – {spread.p95:,.0f})"


def _rate(rate: Rate | None) -> str:
    return MISSING if rate is None else percent_with_interval(rate.rate, rate.ci95, 2)


ROWS: list[tuple[str, Callable[[TextFigures], str]]] = [
    ("texts", lambda texts: number(texts.n)),
    ("words: mean, median (5 % – 95 %)", lambda texts: _spread(texts.words)),
    ("characters", lambda texts: _spread(texts.characters)),
    ("exact repetition", lambda texts: _rate(texts.exact_repetition)),
    *((f"  among {size:,} of them", _among(size)) for size in AMONG),
    (f"near repetition (Jaccard ≥ {NEAR:g})", lambda texts: _rate(texts.near_repetition)),
    ("distinct-1, -2, -3", _distinct),
    ("compression ratio", _compression),
    ("Vendi score", _vendi),
]
"""The rows of the table: what they are called, and their cell."""


def _cautions(one: Statistics, other: Statistics) -> Iterator[str]:
    """What of two runs does not compare."""
    figures = [(getattr(one, kind), getattr(other, kind)) for kind in KINDS]
    both = [(a, b) for a, b in figures if a is not None and b is not None]
    if any(a.n != b.n for a, b in both):
        yield "Repetition rises with the number of texts. Where that differs, compare the rows “among”."
    if any(_sample_sizes(a) != _sample_sizes(b) for a, b in both):
        yield (
            "Figures of samples of different size do not compare: distinct-n falls as a sample grows, "
            "the others rise."
        )


def _sample_sizes(texts: TextFigures) -> tuple[int, int, int]:
    return texts.distinct.words, texts.compression.bytes, texts.vendi.texts


def _details(run: Statistics) -> Iterator[str]:
    for what in dict.fromkeys([*run.sources, *run.licences]):
        source, licence = run.sources.get(what), run.licences.get(what)
        yield f"{what:12} " + ", ".join(filter(None, [source, licence and f"licence: {licence}"]))
    for row in run.funnel:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in row.reasons.items())
        dropped = f"{row.dropped:,} dropped" + (f" ({reasons})" if reasons else "")
        yield f"{row.stage:12} {row.records:,} kept, {dropped}"
    for name, counts in run.templates.items():
        yield f"template     {name}: {_template(counts)}"
    if run.prompts is None:
        yield (
            "no prompts   of its own: it trains on given pairs. `sao import` makes a run of such pairs, "
            "which can be measured"
        )
    elif run.prompts.topics is None:
        yield "topics       need scikit-learn: pip install 'sao[data]'"
    else:
        yield from _topics(run.prompts.topics)


def _template(counts: TemplateCounts) -> str:
    kept = "" if counts.kept is None else f", {counts.kept:,} kept"
    return f"{counts.asked:,} asked, {counts.written:,} written{kept}"


def _topics(topics: Topics) -> Iterator[str]:
    few = "" if topics.clusters else ": too few to say"
    yield f"topics       of {topics.texts:,} prompts as written{few}"
    for topic in topics.clusters:
        yield f"  {percent_with_interval(topic.rate, topic.ci95, 0):16} {', '.join(topic.words)}"
