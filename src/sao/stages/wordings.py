"""The words in which a judge is asked: its templates, with the two words of a verdict put in."""

from __future__ import annotations

import re

from sao.config import JudgingConfig
from sao.errors import ConfigError
from sao.templates import fill, load_template

PAIRWISE = ("prompt", "first", "second")
"""What must stand in a template that shows two answers."""
_FIELD = re.compile(r"\{\w+\}")
POINTWISE = ("prompt", "answer")
"""The same for one that shows one answer."""


def judge_templates(config: JudgingConfig) -> list[str]:
    """The texts by which a chat model is asked, with its two words in them. Raises ConfigError where a field
    is missing."""
    fields = POINTWISE if config.method == "pointwise" else PAIRWISE
    names = ("yes", "no") if config.method == "pointwise" else ("first_choice", "second_choice")
    words = dict(zip(names, (word.strip() for word in config.words), strict=True))
    return [fill(load_template(name, fields), **words) for name in config.templates]


def check_words(config: JudgingConfig) -> None:
    """Raise ConfigError where a template lacks a field, or does not name a word with which a verdict is to
    begin."""
    alone = config.method == "pointwise"
    key = "judging.choices_pointwise" if alone else "judging.choices"
    fields = "{yes} and {no}" if alone else "{first_choice} and {second_choice}"
    for name, text in zip(config.templates, judge_templates(config), strict=True):
        text = _FIELD.sub(" ", text)  # the field {first} does not show the word "first"
        for word in (word.strip() for word in config.words):
            if not re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text):
                raise ConfigError(
                    f"{key}: a verdict is to begin with {word!r}, which template {name!r} does not name. Put "
                    f"{fields} into the template, or give {key} the words that stand in it",
                    key=key,
                )
