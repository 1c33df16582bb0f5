"""The errors of SAO. A message says what is wrong, where, and what to do next; `key` says in a word what it
is about, so that a program (or a test) need not read the message.

SAOError
├── ConfigError (ValueError)      a recipe or an option that cannot be used
├── DataError (ValueError)        a file of personas, prompts or pairs that cannot be read
├── ModelError (ValueError)       a model that is missing, incomplete or no chat model
├── EngineError (RuntimeError)    an engine that failed, after its bounded retries
├── StoreError (OSError)          a run folder that cannot be written or does not belong to this recipe
├── DropError (RuntimeError)      too large a share of a stage's items was dropped
└── TrainingError (RuntimeError)  training that cannot go on (a loss that is not finite)
    └── NoPairsError              no pairs to train on
"""

from __future__ import annotations


class SAOError(Exception):
    """Anything that SAO reports to its user; everything else is a bug.

    Args:
        message: What is wrong, where, and what to do next.
        key: What the error is about: a key of the recipe ("judging.panel"), an option ("--out"), a file by
            its name ("manifest.json"), a package ("lm-eval"), or a short word of the project's ("run folder",
            "weights", "shards"). It stays the same where the message changes. None where nothing is to be
            named.

    """

    def __init__(self, message: str = "", *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class ConfigError(SAOError, ValueError):
    """A recipe or an option that cannot be used."""


class DataError(SAOError, ValueError):
    """A file of personas, prompts or pairs that cannot be read."""


class ModelError(SAOError, ValueError):
    """A model that is missing, incomplete or no chat model."""


class EngineError(SAOError, RuntimeError):
    """An engine that failed, after its bounded retries."""


class StoreError(SAOError, OSError):
    """A run folder that cannot be written, or that does not belong to this recipe."""


class DropError(SAOError, RuntimeError):
    """Too large a share of a stage's items was dropped."""


class TrainingError(SAOError, RuntimeError):
    """Training that cannot go on."""


class NoPairsError(TrainingError):
    """There are no pairs to train on: all were dropped."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came while a model was trained; a checkpoint was saved. No SAOError: nothing went wrong."""
