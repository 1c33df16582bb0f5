"""The audit in words: the advice in one sentence, and the table."""

from __future__ import annotations

from typing import Any

TARGET, LEAST_SHARE = 0.95, 0.05
"""The label accuracy that the advice aims at, and the smallest share of pairs that it would keep for it."""
CHANCE, NO_BETTER = 0.5, 0.55
"""Share of flips of a coin that is tossed for each order, and an expected label accuracy that is hardly more
than a coin's."""


def verdict_on(found: dict[str, Any]) -> str:
    """The audit in one sentence: how good the judge is, and what to keep of its word."""
    judge, curve = found["judge"], found["coverage"]
    by_people = found["agreement"].get("people", {}).get("agreement_where_both_decide")
    accuracy = judge["accuracy"] if judge["accuracy"] is not None else by_people
    first, flips = judge["first_slot_rate"], judge["flip_rate"]
    if first is not None and not 0.1 <= first <= 0.9 and (flips is None or flips > 0.8):
        return "no judge: its verdict hangs on the slot, not on the answer; learn from none of its pairs"
    effect = (judge["effects"] or {}).get("length")
    longer = judge["longer_wins_rate"]
    if longer is not None and not 0.02 <= longer <= 0.98 and effect is not None and (accuracy or 0) < 0.75:
        return f"no judge: it takes the {'longer' if longer > 0.5 else 'shorter'} answer; learn from none of its pairs"  # noqa: E501
    if accuracy is None:
        name = (
            "judge of unknown accuracy"
            if flips is None
            else f"judge that flips {100 * flips:.0f} % of its verdicts"
        )
    else:
        name = f"{'good' if accuracy >= 0.9 else 'fair' if accuracy >= 0.75 else 'weak'} judge (right {100 * accuracy:.0f} %)"  # noqa: E501
    worth = [(row, row["accuracy"] if row["accuracy"] is not None else row["expected"]) for row in curve]
    usable = [(row, value) for row, value in worth if value is not None and row["share"] >= LEAST_SHARE]
    best = max((value for _, value in usable), default=0.0)
    if accuracy is None and flips is not None and flips >= CHANCE and best < NO_BETTER:
        return (
            f"no judge: swapped answers flip {100 * flips:.0f} % of its verdicts, so its two orders agree no "
            "more often than by "
            "chance; learn from none of its pairs"
        )
    if not usable:
        return f"{name}: too few confident pairs to say what to keep"
    row, value = next(((r, v) for r, v in usable if v >= TARGET), max(usable, key=lambda item: item[1]))
    how = "" if row["accuracy"] is not None else ", if its confidence can be trusted"
    return (
        f"{name}: keep only p ≥ {row['min_p']:g}, expected label accuracy {value:.2f}{how} "
        f"({100 * row['share']:.0f} % of the pairs)"
    )


def show_audit(found: dict[str, Any]) -> str:
    """The audit as text."""
    lines = [found["verdict"], ""]
    names = {"judge": found["judge"], **found["panel"]}
    head = f"{'':26}" + "".join(f"{name[:24]:>26}" for name in names)
    lines.append(head)
    for key, text in ROWS.items():
        cells = [_cell(summary[key], summary["ci95"].get(key)) for summary in names.values()]
        if any(cell.strip() != "–" for cell in cells):
            lines.append(f"{text:26}" + "".join(f"{cell:>26}" for cell in cells))
    lines += [
        f"{text:26}" + "".join(f"{_number(summary[key]):>26}" for summary in names.values())
        for key, text in (
            ("slot_bias_nats", "slot bias, nats"),
            ("temperature", "temperature"),
            ("verdicts", "verdicts"),
        )
    ]
    for name, summary in names.items():
        if summary["effects"]:
            parts = [
                f"{key} {value['log_odds']:+z.2f} ± {1.96 * value['se']:.2f}"
                for key, value in summary["effects"].items()
                if key not in ("converged", "n")
            ]
            unfit = "" if summary["effects"]["converged"] else " (one of them decides alone: no finite fit)"
            lines.append(
                f"\nwhat decides ({name}), log-odds for the first slot, a doubled length, quality 1: "
                f"{', '.join(parts)}{unfit}"
            )
    lines.append(
        f"\nall answers the same       {_cell(found['same_answers']['rate'], found['same_answers']['ci95'])} "
        "of the prompts"
    )
    kept = found["kept"]
    right = (
        ""
        if kept["label_accuracy"] is None
        else f", {_cell(kept['label_accuracy'], kept['ci95'])} of them right"
    )
    lines.append(
        f"pairs kept                 {kept['pairs']} ({_percent(kept['share'])} of the possible ones){right}"
    )
    lines += ["", f"{'keep p ≥':>10}{'share':>9}{'right':>24}{'expected':>11}"]
    for row in found["coverage"]:
        figures = f"{_cell(row['accuracy'], row['ci95']):>24}{_percent(row['expected']):>11}"
        lines.append(f"{row['min_p']:10g}{_percent(row['share']):>9}{figures}")
    if found["calibration"]:
        c = found["calibration"]
        bins = "  ".join(f"{row['p']:.2f}→{row['right']:.2f} ({row['n']})" for row in c["bins"])
        lines.append(
            f"\ncalibration (p → share right): {bins}\nexpected calibration error {c['expected_error']:.3f} "
            f"on {c['n']} pairs"
        )
    for name, row in found["agreement"].items():
        kappa = "–" if row["kappa"] is None else f"{row['kappa']:z.2f}"
        lines.append(
            f"agrees with {name}: {_cell(row['agreement'], row['ci95'])} of {row['pairs']} pairs, κ {kappa}"
        )
    for name, row in found.get("self_tests", {}).items():
        lines.append(
            f"self-test {name:12} {_cell(row['rate'], row['ci95'])} {TESTS[name]} ({row['n']} verdicts)"
        )
    return "\n".join(lines)


ROWS = {
    "accuracy": "right", "first_slot_rate": "first slot wins", "flip_rate": "flips when swapped",
    "unreadable_rate": "unreadable", "tie_rate": "ties", "longer_wins_rate": "longer wins",
    "intransitive_rate": "goes in circles",
}  # fmt: skip
TESTS = {
    "identical": "for the first slot (50 % is fair)", "padded": "against a padded copy",
    "truncated": "against a copy cut in half", "shuffled": "against a shuffled copy",
}  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:z.2f}"


def _cell(value: float | None, interval: list[float] | tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" + (
        f" [{100 * interval[0]:z.1f}, {100 * interval[1]:z.1f}]" if interval else ""
    )
