"""The figures in words: a table of one or two runs, and below it where their data come from, what was
dropped, and topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sao.analysis.stats.measures import AMONG, COMPRESSED_BYTES, DISTINCT_WORDS, LONGEST, NEAR, VENDI_TEXTS

KINDS = {
    "personas": "personas", "prompts": "prompts, as written", "kept_prompts": "prompts, after the filters",
    "answers": "answers",
}  # fmt: skip
SIZES = {
    "distinct": (DISTINCT_WORDS, "words"), "compression": (COMPRESSED_BYTES, "bytes"), "vendi": (VENDI_TEXTS,
    "texts"),
}  # fmt: skip
"""Figures that are taken on samples: of what size, and what that counts."""


def _among(m: int) -> Callable[[dict[str, Any]], str]:
    return lambda s: _percent({"rate": s["exact_repetition"]["among"][str(m)]})


ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("texts", lambda s: f"{s['n']:,}"),
    ("words: mean, median (5 % – 95 %)", lambda s: _spread(s["words"])),
    ("characters", lambda s: _spread(s["characters"])),
    ("exact repetition", lambda s: _percent(s["exact_repetition"])),
    *((f"  among {m:,} of them", _among(m)) for m in AMONG),
    (f"near repetition (Jaccard ≥ {NEAR:g})", lambda s: _percent(s["near_repetition"])),
    (
        "distinct-1, -2, -3",
        lambda s: _sampled(s, "distinct", "  ".join(_number(s["distinct"][k], 3) for k in "123")),
    ),
    ("compression ratio", lambda s: _sampled(s, "compression", _number(s["compression"]["ratio"], 2))),
    ("Vendi score", lambda s: _sampled(s, "vendi", _number(s["vendi"]["score"], 1))),
]


def show_stats(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """One or two runs, each a name and what `stats` found: a column each, and below the table the rest of
    each."""
    lines = [" " * 36 + "".join(f"{name if len(name) < 37 else '…' + name[-35:]:>38}" for name, _ in runs)]
    for kind, title in KINDS.items():
        columns = [found[kind] if kind in found and found[kind]["n"] else None for _, found in runs]
        if not any(columns):
            continue
        lines += ["", title]
        for name, cell in ROWS:
            cells = ["–" if figures is None else cell(figures) for figures in columns]
            if set(cells) != {"–"}:
                lines.append(f"  {name:34}" + "".join(f"{text:>38}" for text in cells))
    lines += [
        "",
        f"Samples: {DISTINCT_WORDS:,} words for distinct-n, {COMPRESSED_BYTES:,} bytes for compression, "
        f"{VENDI_TEXTS:,} texts "
        f"for Vendi (or what the table says);\nof a text the first {LONGEST:,} characters.",
    ]
    lines += _cautions(runs)
    for name, found in runs:
        lines += ["", name, *(f"  {line}" for line in _details(found))]
    return "\n".join(lines)


def _cautions(runs: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """What of two runs does not compare."""
    (_, one), (_, other) = runs[0], runs[-1]
    both = [(one[kind], other[kind]) for kind in KINDS if kind in one and kind in other]
    if any(a["n"] != b["n"] for a, b in both):
        yield "Repetition rises with the number of texts. Where that differs, compare the rows “among”."
    if any(a[key][unit] != b[key][unit] for a, b in both for key, (_, unit) in SIZES.items()):
        yield "Figures of samples of different size do not compare: distinct-n falls as a sample grows, the others rise."  # noqa: E501


def _details(found: dict[str, Any]) -> Iterator[str]:
    for what in dict.fromkeys([*found["sources"], *found["licences"]]):
        source, licence = found["sources"].get(what), found["licences"].get(what)
        yield f"{what:12} " + ", ".join(filter(None, [source, licence and f"licence: {licence}"]))
    for row in found["funnel"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in row["reasons"].items())
        lost = f"{row['dropped']:,} dropped" + (f" ({reasons})" if reasons else "")
        yield f"{row['stage']:12} {row['records']:,} kept, {lost}"
    for name, counts in found["templates"].items():
        yield f"template     {name}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items())
    if "prompts" not in found:
        yield "no prompts   of its own: it trains on given pairs. `sao import` makes a run of such pairs, which can be measured"  # noqa: E501
    elif found["prompts"]["topics"] is None:
        yield "topics       need scikit-learn: pip install 'sao[data]'"
    else:
        topics = found["prompts"]["topics"]
        yield f"topics       of {topics['texts']:,} prompts as written" + (
            "" if topics["clusters"] else ": too few to say"
        )
        for topic in topics["clusters"]:
            low, high = (100 * end for end in topic["ci95"])
            share = f"{100 * topic['rate']:.0f} % [{low:.0f}, {high:.0f}]"
            yield f"  {share:16} {', '.join(topic['words'])}"


def _spread(found: dict[str, float] | None) -> str:
    return "–" if found is None else "{mean:,.1f}, {median:,.0f} ({p5:,.0f} – {p95:,.0f})".format(**found)


def _percent(found: dict[str, Any] | None) -> str:
    if found is None or found["rate"] is None:
        return "–"
    ends = " [{:.2f}, {:.2f}]".format(*(100 * end for end in found["ci95"])) if "ci95" in found else ""
    return f"{100 * found['rate']:.2f} %{ends}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _sampled(found: dict[str, Any], key: str, figure: str) -> str:
    """A figure, with the size of its sample where that is less than it should be."""
    size, unit = SIZES[key]
    return figure if found[key][unit] >= size else f"{figure} on {found[key][unit]:,} {unit}"
