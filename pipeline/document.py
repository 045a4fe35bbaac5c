"""Check the whole of `params.yaml`: every section, and the rules between sections."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.adopt.params import Adopted
from pipeline.attacks.params import SPARING, Attack, Generate
from pipeline.base import params
from pipeline.base.values import CLEAN, MIXED, Name, Section, Share, Spread, greatest
from pipeline.evaluate.params import Evaluated
from pipeline.export.params import AUTO, Export
from pipeline.harden.params import Finetune, Online, Selection
from pipeline.networks.params import Model
from pipeline.prepare.params import Data, Store
from pipeline.train.params import Training


class Document(Section):
    """Every section of `params.yaml`.

    Sections include what they inherit from `seed`, `precision`, `training` and `mix`.
    """

    seed: int
    precision: str
    training: dict[str, Any]
    mix: dict[str, Share]
    data: Data
    store: Store
    model: Model
    clean: Training
    attacks: dict[Name, Attack] = Field(min_length=1)
    attacked: list[Name] = Field(min_length=1)
    sources: list[Name]
    generate: Generate
    finetuned: dict[Name, Finetune]
    online: dict[Name, Online]
    adopted: dict[Name, Adopted]
    selection: Selection
    evaluate: Evaluated
    export: Export

    @property
    def models(self) -> list[str]:
        """The names of all models, each after the one that it starts from."""
        found = self.independent
        waiting = list(self.finetuned)
        while ready := [name for name in waiting if self.finetuned[name].of in found]:
            found += ready
            waiting = [name for name in waiting if name not in found]
        return found

    @property
    def independent(self) -> list[str]:
        """The names of the models that are not fine-tuned from another one."""
        return [CLEAN, *self.online, *self.adopted]

    @property
    def starts(self) -> dict[str, Model]:
        """Every network that a training may begin with, by its dotted key."""
        own = {f"online.{name}.start": recipe.start for name, recipe in self.online.items()}
        return {
            "model": self.model,
            **{key: start for key, start in own.items() if isinstance(start, Model)},
        }

    @property
    def all_attacks(self) -> dict[str, Attack]:
        """Every attack and every threat, by its dotted key."""
        stored = {f"attacks.{name}": attack for name, attack in self.attacks.items()}
        return {
            **stored,
            **{
                f"evaluate.threats.{name}": threat for name, threat in self.evaluate.threats.items()
            },
        }

    @property
    def guesses(self) -> list[float]:
        """Every eps of the grid, if there is one."""
        return self.evaluate.grid.eps if self.evaluate.grid is not None else []

    def architecture_of(self, model: str) -> str:
        """Return the architecture of a model, by the model's name.

        It is the architecture of the network that the model's first training began with.
        """
        if model in self.finetuned:
            return self.architecture_of(self.finetuned[model].of)
        if model in self.adopted:
            return self.adopted[model].architecture
        start = self.online[model].start if model in self.online else CLEAN
        return start.architecture if isinstance(start, Model) else self.model.architecture

    def mix_of(self, model: str) -> dict[str, float]:
        """Return the shares of the stored sets that a model is fine-tuned on, by name.

        The result is empty for a model that is not fine-tuned.
        """
        return self.finetuned[model].mix if model in self.finetuned else {}

    @model_validator(mode="after")
    def _check_attacks(self) -> Self:
        for name, attack in self.attacks.items():
            if name in (CLEAN, MIXED):
                raise ValueError(
                    f"attacks.{name}: expected another name, "
                    f"{CLEAN!r} and {MIXED!r} mean other images, found {name!r}"
                )
            lowest = attack.eps.bounds[0] if isinstance(attack.eps, Spread) else attack.eps
            if lowest < 1 / 255:
                raise ValueError(
                    f"attacks.{name}.eps: expected at least 1/255, "
                    f"the step between stored pixels, found {lowest}"
                )
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        taken = {CLEAN}
        for section in ("online", "adopted", "finetuned"):
            for name in getattr(self, section):
                if name in taken:
                    raise ValueError(
                        f"{section}.{name}: expected a name that no other model has, "
                        f"found {name!r} again"
                    )
                taken.add(name)
        known = self.models
        for key, names, allowed in (
            ("attacked", self.attacked, known),
            ("sources", self.sources, self.independent),
        ):
            for name in names:
                if name not in allowed or names.count(name) > 1:
                    raise ValueError(
                        f"{key}: expected some of {', '.join(allowed)}, each once, found {name!r}"
                    )
        for name, recipe in self.finetuned.items():
            if recipe.of not in self.attacked or name not in known:
                raise ValueError(
                    f"finetuned.{name}.of: expected an attacked model "
                    f"({', '.join(self.attacked)}), found {recipe.of!r}"
                )
        return self

    @model_validator(mode="after")
    def _check_mixes(self) -> Self:
        others = [f"{model}-{attack}" for model in self.sources for attack in self.attacks]
        for model, recipe in self.finetuned.items():
            for name in recipe.mix.keys() - {CLEAN, *self.attacks, *others}:
                where = "mix" if recipe.mix == self.mix else f"finetuned.{model}.mix"
                raise ValueError(
                    f"{where}.{name}: expected {CLEAN}, a name from attacks "
                    f"({', '.join(self.attacks)}) or one from sources"
                    f" ({', '.join(others) or 'here none'}), found {name!r}"
                )
        return self

    @model_validator(mode="after")
    def _check_evaluated(self) -> Self:
        known, judged = self.models, self.evaluate.models
        for name in judged:
            if name not in known or judged.count(name) > 1:
                raise ValueError(
                    f"evaluate.models: expected some of {', '.join(known)}, each once, "
                    f"found {name!r}"
                )
        for name in known:
            if name not in judged:
                raise ValueError(
                    f"evaluate.models: expected every model, {name!r} is missing (add it)"
                )
        if self.evaluate.stored not in self.attacked:
            raise ValueError(
                f"evaluate.stored: expected an attacked model ({', '.join(self.attacked)}), "
                f"found {self.evaluate.stored!r}"
            )
        if self.export.model not in (*known, AUTO):
            raise ValueError(
                f"export.model: expected {AUTO} or one of {', '.join(known)}, "
                f"found {self.export.model!r}"
            )
        return self

    @model_validator(mode="after")
    def _check_ranking(self) -> Self:
        if AUTO in self.models:
            raise ValueError(
                f"export.model: {AUTO} means the best model; name that model otherwise"
            )
        guesses = self.guesses
        if self.export.model == AUTO and not any(map(self.export.score.covers, guesses)):
            raise ValueError(
                f"export.model: expected a name, found {AUTO}, which needs an eps of evaluate.grid "
                f"up to export.score.max_eps, found {guesses or 'no grid'}"
            )
        return self


def remarks(settings: Document) -> Iterator[str]:
    """Yield what is allowed, but seldom meant."""
    for where, attack in settings.all_attacks.items():
        alpha, eps = attack.parameters.get("alpha", 0), greatest(attack.eps)
        if alpha > eps and attack.attack != "FFGSM":  # whose paper has alpha above eps
            yield (
                f"{where}: alpha {alpha:g} is more than eps {eps:g}, "
                "so every step leaves the eps ball and is cut back to it"
            )
    mixed = {part.split("-")[-1] for model in settings.finetuned for part in settings.mix_of(model)}
    for name in settings.attacks.keys() - mixed if settings.finetuned else ():
        yield (
            f"attacks.{name}: in no mix, so its images are stored and no model is trained on them; "
            "an attack that only judges belongs under evaluate.threats"
        )
    for name, spec in settings.attacks.items():
        if name in mixed and spec.attack in SPARING:
            yield (
                f"attacks.{name}: {spec.attack} returns images that it does not fool as they were, "
                "so the mix has clean images among its adversarial ones"
            )
    guesses, score = settings.guesses, settings.export.score
    if guesses and not any(map(score.covers, guesses)):  # then export.model names a model
        yield (
            f"export.score: no eps of evaluate.grid is up to max_eps {score.max_eps:g}, "
            "so the models are not ranked"
        )


def load(path: Path) -> Document:
    """Return the checked contents of a whole params file.

    Raises InputError as `base.params.load` does, also for unknown sections.
    """
    return params.checked(path, Document, params.read(path))
