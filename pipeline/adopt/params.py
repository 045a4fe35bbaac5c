"""Define the section `adopted` of `params.yaml`: models that were trained elsewhere."""

from typing import Self

from pydantic import ValidationError, model_validator

from pipeline.base.values import Name, Section, explain
from pipeline.networks.params import Architecture, Model


class Adopted(Section):
    """A network that was trained elsewhere, and the file of its tensors."""

    architecture: Architecture
    file: str

    @property
    def model(self) -> Model:
        """The same as a network to start from, with its last layer."""
        return Model(architecture=self.architecture, weights=self.file, keep_head=True)

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        try:
            is_file = self.model.file is not None
        except ValidationError as error:
            text = explain(error.errors()[0]).removeprefix("weights: ")
            raise ValueError(f"file: {text}") from error
        if not is_file:
            raise ValueError(f"file: expected a file in models/pretrained/, found {self.file!r}")
        return self


class AdoptParams(Section):
    """The section that the stage `adopt@<model>` reads."""

    adopted: dict[Name, Adopted]
