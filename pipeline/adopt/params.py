"""Define the section `adopted` of `params.yaml`: models that were trained elsewhere."""

import re

from pydantic import field_validator

from pipeline.base.values import Name, Section
from pipeline.networks.params import Architecture


class Adopted(Section):
    """A network that was trained elsewhere, and the file of its tensors."""

    architecture: Architecture
    file: str

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        """Refuse what a shell would take apart: DVC runs a command line with this name."""
        if not re.fullmatch(r"[\w./@+-]+", file) or file.startswith("-"):
            raise ValueError(
                "expected a path of letters, digits and . _ - + @ / (rename the file),"
                f" found {file!r}"
            )
        return file


class AdoptParams(Section):
    """The section that the stage `adopt@<model>` reads."""

    adopted: dict[Name, Adopted]
