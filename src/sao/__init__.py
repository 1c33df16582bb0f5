"""SAO, Self-Alignment Optimization: a chat model writes, answers and judges its own prompts, and is trained
on them.

    import sao
    config = sao.load_recipe("demo")
    result = sao.run(config, out="runs/demo")

Importing `sao` imports neither torch nor transformers: what needs them is loaded when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sao.config import Config, load_recipe
    from sao.method import run

__version__ = "0.1.0"
__all__ = ["Config", "__version__", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    match name:
        case "Config" | "load_recipe":
            from sao import config

            return getattr(config, name)
        case "run":
            from sao.method import run

            return run
    raise AttributeError(f"module 'sao' has no attribute {name!r}")
