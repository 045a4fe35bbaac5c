"""Defines the section `export` of `params.yaml`."""

from typing import Annotated

from pydantic import Field

from pipeline.base.values import Name, Section


class Export(Section):
    """Which model is submitted.

    `min_clean` is the clean accuracy in [0, 1] that it must exceed to be submitted without a
    warning.
    """

    model: Name
    min_clean: Annotated[float, Field(ge=0, lt=1)]


class ExportParams(Section):
    """The params that the stage `export` reads."""

    export: Export
