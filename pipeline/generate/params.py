"""Define what the stage `generate@<model>-<attack>` reads of `params.yaml`."""

from pipeline.attacks.params import Attack, Generate
from pipeline.base.values import Name, Section


class GenerateParams(Section):
    """The attack, by its name, and how it is run."""

    attacks: dict[Name, Attack]
    generate: Generate
