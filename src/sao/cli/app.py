"""The command line: parses, calls, prints errors. The only place that shows them."""

from __future__ import annotations

import argparse
import os
import sys

from sao import __version__
from sao.cli import data, inspect, plan, preview, run, sweep
from sao.cli.arguments import check_ranges, join_overrides
from sao.errors import SAOError, Terminated


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 for success, 1 for an error of SAO's, 2 for a wrong command line, 130 after Ctrl-C,
    143 after SIGTERM."""
    try:
        args, extra = build_parser().parse_known_args(join_overrides(sys.argv[1:] if argv is None else argv))
        check_ranges(args)
        status: int = args.call(args, extra)
        return status
    except SAOError as error:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes meet the same error
            _say(f"{type(error).__name__}: {error}")
        return 1
    except Terminated as error:
        _say(f"{error}; the same command goes on from here")
        return 143
    except KeyboardInterrupt:
        _say("stopped; what is finished is kept, and the same command goes on from here")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _say(f"{error.filename or 'system'}: {error.strerror or error}")
        return 1


def _say(line: str) -> None:
    print(f"\nsao: {line}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Each group adds its own, with the function that `call` names."""
    parser = argparse.ArgumentParser(
        prog="sao",
        description="A chat model aligns itself: it writes, answers and judges its own prompts, and learns "
        "from them.",
    )
    parser.add_argument("--version", action="version", version=f"sao {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (run, sweep, data, inspect, plan, preview):
        group.add(commands)
    return parser
