"""Define the section `adopted` of `params.yaml`: models that were trained elsewhere."""

from pipeline.base.values import Name, Section
from pipeline.networks.params import Architecture


class Adopted(Section):
    """A network that was trained elsewhere, and the file of its tensors."""

    architecture: Architecture
    file: str


class AdoptParams(Section):
    """The section that the stage `adopt@<model>` reads."""

    adopted: dict[Name, Adopted]
