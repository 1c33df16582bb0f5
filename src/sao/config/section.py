"""The base of all sections of a recipe, and a walk over their keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def field_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe."""
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from field_names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, None where it holds a value or a list; `Section | None` counts as a
    section."""
    if get_origin(annotation) is list:
        return None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None
