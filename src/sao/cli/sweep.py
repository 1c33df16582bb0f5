"""The command that compares recipes: sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sao.cli.arguments import add_json, quiet_libraries, read_overrides, read_target
from sao.cli.progress import Progress

if TYPE_CHECKING:
    from sao.cli.arguments import Commands

EPILOG = """\
Values are separated by commas, as in a list of YAML: --over train.lr=1e-5,2e-5
A value that is a list or a mapping, or holds a comma, stands in its brackets or quotation marks:
  --over 'judging.choices=[A,B],["1","2"]'
Without --product one key is changed at a time, and the recipe itself is a cell. Keys that end in "seed"
repeat every setting. Any key of the recipe can be set for all cells: --personas.n 500
The same command again goes on where it stopped."""


def add(commands: Commands) -> None:
    """The parser of `sao sweep`."""
    text = "several recipes that differ in a few keys, with what they share made once, and a table of them"
    command = commands.add_parser(
        "sweep",
        help=text,
        description=text,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_option = command.add_argument
    add_option("target", metavar="TARGET", help="recipe, recipe file or model")
    add_option(
        "--over", action="append", default=[], metavar="KEY=VALUE,VALUE", help="a key to change (repeatable)"
    )
    add_option("--out", type=Path, required=True, help="folder of the sweep")
    add_option("--product", action="store_true", help="all combinations of the values")
    add_option(
        "--measure",
        metavar="NAME",
        help="what the best setting is chosen by: checks, checks_unseen, oracle or win_rate (default: checks "
        "or oracle where there is one)",
    )
    add_option("--retry", action="store_true", help="run cells again that failed")
    add_option("--table", action="store_true", help="show the table of what exists; run nothing")
    add_option("--seed", type=int, help="the run's seed (default: the recipe's)")
    add_json(command)
    add_option("--quiet", action="store_true", help="no progress")
    command.set_defaults(call=_sweep)


def _sweep(args: argparse.Namespace, extra: list[str]) -> int:
    seed = {} if args.seed is None else {"seed": str(args.seed)}
    config = read_target(args.target, {**read_overrides(extra), **seed})
    quiet_libraries()
    from sao.report.sweep import markdown_sweep, show_sweep
    from sao.store.files import write_atomic
    from sao.sweep import Cells, check_measure, make_plan, make_table, run_cells, table_path

    check_measure(args.measure)
    plan = make_plan(config, args.over, args.out, product=args.product, known=args.table)
    if args.table:
        Cells(args.out).must_exist()
    else:
        print(f"{len(plan.cells)} cells in {args.out}", file=sys.stderr)
        bar = Progress(not args.quiet)
        try:
            run_cells(plan, retry=args.retry, progress=bar, notify=bar.say)
        finally:
            bar.close()
    sweep = make_table(plan, args.measure)
    write_atomic(table_path(args.out), markdown_sweep(sweep) + "\n")
    print(show_sweep(sweep))
    if args.json:
        print(sweep.model_dump_json())
    return 0 if sweep.done else 1
