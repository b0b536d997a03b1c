"""The base class of every part of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. It refuses unknown keys and numbers that are not finite, and its values never change
    after validation.

    A field has a type, bounds and one line of help (``Field(description=...)``), and no default: defaults are in
    ``conf/``. Help is written here and not in the YAML files because ``--help KEY`` and ``docs/configuration.md`` print
    it beside the type and the bounds, and because a key has one field but may have a value in several files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
