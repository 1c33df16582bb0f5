"""The base of all sections of a recipe, and a walk over their keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python


def setting(*, affects_records: bool = True, because: str = "", **options: Any) -> Any:
    """A field of a section. Every key counts for the records that are made by it, and so for the folder that
    they lie in, unless it is marked with `affects_records=False` and the reason `because`."""
    if affects_records:
        return Field(**options)
    if not because:
        raise TypeError("a key that affects no records says why (because=…)")
    return Field(json_schema_extra={"affects_records": False, "because": because}, **options)


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    def counted(self) -> dict[str, Any]:
        """The keys that count for records, with their values, defaults too, as JSON values."""
        fields = type(self).model_fields
        return {name: _counted(getattr(self, name)) for name in fields if affects_records(type(self), name)}


def _counted(value: Any) -> Any:
    if isinstance(value, Section):
        return value.counted()
    if isinstance(value, list):
        return [_counted(item) for item in value]
    return to_jsonable_python(value)


def affects_records(section: type[BaseModel], name: str) -> bool:
    """Whether a key of a section counts for the records that are made by it."""
    extra = section.model_fields[name].json_schema_extra
    return not (isinstance(extra, dict) and extra.get("affects_records") is False)


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
