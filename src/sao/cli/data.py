"""The commands that take data in and give it out: import, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sao.cli.arguments import add_json, add_round, no_more, own_pairs, read_overrides, read_target

if TYPE_CHECKING:
    from sao.cli.arguments import Commands


def add(commands: Commands) -> None:
    """The parsers of `sao export` and `sao import`."""
    _add_export(commands)
    _add_import(commands)


def _add_export(commands: Commands) -> None:
    command = commands.add_parser(
        "export", help="a run's pairs as a data set for TRL or another tool, with a card"
    )
    add_option = command.add_argument
    add_option("run", type=Path, metavar="RUN", help="run folder")
    add_option(
        "--out",
        type=Path,
        help="folder of the data set (default: RUN/export; of a later round RUN/export-round-K)",
    )
    add_option(
        "--format",
        default="trl",
        help="trl (default), simpo, llamafactory, axolotl or openrlhf: what will read it",
    )
    add_option(
        "--view", default="pairs", help="pairs (default), kto (answers with a label) or sft (best answers)"
    )
    add_option(
        "--test-share",
        type=float,
        default=0.05,
        help="share of the prompts that become test data (default: 0.05)",
    )
    add_option("--no-audit", action="store_true", help="leave the judge's figures out of the card (quicker)")
    add_option("--push-to-hub", metavar="ID", help="upload the folder as a private data set (HF_TOKEN)")
    add_round(command)
    add_json(command)
    command.set_defaults(call=_export)


def _add_import(commands: Commands) -> None:
    command = commands.add_parser(
        "import",
        help="a preference data set that others made, as a run: for training, audit, labels, statistics, "
        "export",
        epilog="Any key of a recipe can be set too: --model MODEL --pairs.revision COMMIT --pairs.licence "
        "NAME",
        allow_abbrev=False,
    )
    add_option = command.add_argument
    add_option("source", metavar="FILE|HUB", help="a file, a folder of Parquet files, or a hub data set's id")
    add_option("--out", type=Path, required=True, help="run folder")
    add_option("--recipe", default="default", help="recipe to go on with (default: default)")
    add_option("--held-out", type=int, default=0, help="prompts that only the evaluation sees (default: 0)")
    add_json(command)
    command.set_defaults(call=_import)


def _export(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.audit import audit
    from sao.sharing.export import export
    from sao.training.cards import push_dataset

    no_more(extra)
    run = own_pairs(args.run, args.round)
    number = run.round.number
    out = args.out or args.run / ("export" if number == 1 else f"export-round-{number}")
    judge = None if args.no_audit else audit(run)
    done = export(run, out, args.format, args.view, args.test_share, judge)
    print(f"{done.train} rows for training, {done.test} for testing ({args.format}, {args.view}) in {out}")
    if args.push_to_hub:
        print(f"uploaded: {push_dataset(out, args.push_to_hub)}")
    if args.json:
        print(done.model_dump_json())
    return 0


def _import(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.sharing.import_pairs import import_pairs
    from sao.stages.personas import non_commercial

    config = read_target(args.recipe, {**read_overrides(extra), "pairs.source": args.source})
    done = import_pairs(config, args.out, args.held_out)
    reasons = ", ".join(f"{reason} {n}" for reason, n in done.reasons.items())
    print(
        f"{done.pairs} pairs, {done.held_out} held-out prompts, {done.dropped} rows dropped "
        f"({reasons or '–'})"
    )
    if non_commercial(done.licence):
        print(f"NON-COMMERCIAL: the licence of the pairs is {done.licence}")
    print(f"go on:  sao train {done.recipe} --out {args.out} --model MODEL\n        sao audit {args.out}")
    if args.json:
        print(done.model_dump_json())
    return 0
