"""The base class of every part of the configuration."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of the configuration. It refuses unknown keys and numbers that are not finite, and its values never change
    after validation.

    A field has a type, bounds and one line of help (``Field(description=...)``), and no default: defaults are in
    ``conf/``. Help is written here and not in the YAML files because ``--help KEY`` and ``docs/configuration.md`` print
    it beside the type and the bounds, and because a key has one field but may have a value in several files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take ``seed=true`` as 1."""
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            types = {annotation, *get_args(annotation)}
            if types & {int, float} and bool not in types:
                raise ValueError("must be a number, not true or false")
        return value
