"""The command that computes what a run takes: plan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sao.cli.arguments import add_json, read_overrides, read_target

if TYPE_CHECKING:
    from sao.cli.arguments import Commands


def add(commands: Commands) -> None:
    """The parser of `sao plan`."""
    command = commands.add_parser(
        "plan",
        help="memory and hours of a recipe before anything starts, and which way of training fits",
        epilog="Any key of a recipe can be set too: --train.method lora --train.micro_batch_size 4",
        allow_abbrev=False,
    )
    add_option = command.add_argument
    add_option("target", nargs="?", default="demo", metavar="TARGET", help="recipe, recipe file or model")
    add_option("--gpu", default="H100-80", help="the card to plan for (default: H100-80)")
    add_option("--gpus", type=int, help="how many (default: train.processes)")
    add_option("--nodes", type=int, help="machines that they are in (default: train.nodes)")
    add_option("--prompt-tokens", type=int, default=60, help="assumed mean length of a prompt (default: 60)")
    add_option("--response-tokens", type=int, default=400, help="… of an answer (default: 400)")
    add_option("--mfu", type=float, default=0.40, help="assumed share of the GPU's peak rate (default: 0.40)")
    add_json(command)
    command.set_defaults(call=_plan)


def _plan(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.plan import Lengths, make_plan
    from sao.models.shapes import find_gpu
    from sao.report.plan import show_plan

    config = read_target(args.target, read_overrides(extra))
    lengths = Lengths(prompt=args.prompt_tokens, response=args.response_tokens, mfu=args.mfu)
    plan = make_plan(config, find_gpu(args.gpu), args.gpus, lengths, args.nodes)
    print(show_plan(plan))
    if args.json:
        print(plan.model_dump_json())
    return 0
