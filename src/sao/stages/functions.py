"""Functions of the user's own, named in a recipe as "package.module:function" (filters.reject,
judging.function)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sao.data.readers import content_identity
from sao.errors import ConfigError


def load_function(path: str, key: str) -> Callable[..., Any]:
    """The function that the recipe's `key` names. Raises ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        function = getattr(_fresh(module), name)
    except Exception as error:  # the user's module runs, and may raise anything
        raise _no_function(path, key, f"{type(error).__name__}: {error}") from error
    if not callable(function):
        raise _no_function(path, key, f"it is {type(function).__name__}")
    found: Callable[..., Any] = function
    return found


_LOADED: dict[str, str] = {}
"""What the files of loaded modules held."""


def _fresh(name: str) -> ModuleType:
    """The module as its file is now: a function that was edited is another one, in a long session too."""
    module = importlib.import_module(name)
    if module.__file__ is None:
        return module
    held = content_identity(module.__file__)
    if _LOADED.setdefault(name, held) != held:
        module = importlib.reload(module)
        _LOADED[name] = held
    return module


def function_identity(path: str, key: str) -> str:
    """What a function is, wherever it is stored: its name and the SHA-256 of its module's file. The module is
    not run, and what it imports does not count.

    Raises ConfigError where there is no such module.
    """
    module, _, name = path.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # the packages around it are run, and may raise anything
        raise _no_function(path, key, f"{type(error).__name__}: {error}") from error
    if spec is None:
        raise _no_function(path, key, f"no module {module!r}")
    return f"{content_identity(spec.origin or module)}:{name}"


def _no_function(path: str, key: str, why: str) -> ConfigError:
    return ConfigError(
        f"{key} {path!r}: no such function ({why}). Write it as package.module:function; the module must be "
        "importable here (set PYTHONPATH)",
        key=key,
    )
