"""The command that looks at a model before a run: preview."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sao.cli.arguments import add_json, quiet_libraries, read_overrides, read_target
from sao.cli.progress import Progress
from sao.errors import ConfigError

if TYPE_CHECKING:
    from sao.cli.arguments import Commands


def add(commands: Commands) -> None:
    """The parser of `sao preview`."""
    command = commands.add_parser(
        "preview",
        help="a look at a model or recipe in minutes: texts, yields, the judge, hours, and what to change",
        epilog="Any key of a recipe can be set too: --prompts.method user_turn. The same command again "
        "goes on where it stopped.",
        allow_abbrev=False,
    )
    add_option = command.add_argument
    add_option("target", nargs="?", default="demo", metavar="TARGET", help="recipe, recipe file or model")
    add_option("--minutes", type=float, default=3.0, help="time for the look (default: 3)")
    add_option("--out", type=Path, metavar="FOLDER", help="folder of the look (default: previews/<target>)")
    add_option(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the recipe with the changes here (default: FOLDER/recipe.yaml)",
    )
    add_option("--seed", type=int, help="the run's seed (default: the recipe's)")
    add_json(command)
    add_option("--quiet", action="store_true", help="no progress")
    command.set_defaults(call=_preview)


def _preview(args: argparse.Namespace, extra: list[str]) -> int:
    if not 0 < args.minutes < math.inf:
        raise ConfigError(f"--minutes {args.minutes:g}: give a number above 0", key="--minutes")
    seed = {} if args.seed is None else {"seed": str(args.seed)}
    config = read_target(args.target, {**read_overrides(extra), **seed})
    name = re.sub(r"\.(ya?ml|gguf)$", "", Path(args.target).name).replace(":", "-")
    out = args.out or Path("previews") / name
    quiet_libraries()
    from sao.preview import preview
    from sao.report.preview import show_preview

    print(f"{config.model} → {out}, about {args.minutes:g} minutes", file=sys.stderr)
    bar = Progress(not args.quiet)
    try:
        found = preview(config, out, minutes=args.minutes, write=args.write, progress=bar, notify=bar.say)
    finally:
        bar.close()
    print(show_preview(found))
    if args.json:
        print(found.model_dump_json())
    return 0 if found.problem is None else 1
