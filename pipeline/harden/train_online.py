"""Stage `train_online@<model>`: train a model on adversarial images made for every batch.

The adversarial images are made from the clean image set.
"""

from argparse import Namespace

from pipeline import networks
from pipeline.base import console, files, params, store
from pipeline.base.values import CLEAN
from pipeline.cluster import training
from pipeline.harden import epoch_score, recipes
from pipeline.harden.online_batches import OnlineBatches
from pipeline.harden.params import Online, OnlineParams
from pipeline.networks import device
from pipeline.networks.params import Model
from pipeline.networks.torchvision_models import models
from pipeline.train import checkpointed


def keys(model: str) -> list[str]:
    """Return the dotted keys that this stage reads of `params.yaml`, as declared in `dvc.yaml`."""
    return [
        "seed",
        "precision",
        "training",
        "selection",
        f"online.{model}",
    ]


def train_online() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        model="checkpoint of the clean model",
        out="checkpoint of the trained model; its name is that under `online`",
        history="CSV with a line for every epoch",
    )
    args = parser.parse_args()
    _, recipe = _recipe(args.out.stem)
    return training.train(
        train,
        args,
        inputs=["clean", "model"],
        start=recipe.start if isinstance(recipe.start, Model) else None,
        where=f"online.{args.out.stem}.start",
        outputs=["out", "history"],
    )


def train(args: Namespace) -> str:
    """Train a model online, alone or as one of several workers."""
    name = args.out.stem
    settings, recipe = _recipe(name)
    processor = device.choose()
    clean = store.clean(args.clean)
    val = clean.load("val")
    first = networks.load(args.model, class_names=clean.class_names)
    network, architecture = first.network(), first.architecture
    weights: dict[str, str] = {}
    if isinstance(recipe.start, Model):
        network, weights = _fresh(recipe, recipe.start, f"online.{name}.start", clean)
        architecture = recipe.start.architecture
    attacked = first.network() if recipe.adversary.against == CLEAN else network
    batches = recipes.batches(recipe, {CLEAN: clean}, attacked, processor, args.out.parent)
    assert isinstance(batches, OnlineBatches)
    return checkpointed.train(
        network,
        batches,
        epoch_score.validation(recipe, val, settings, processor),
        recipe,
        text=f"train {name} online",
        out=args.out,
        history=args.history,
        architecture=architecture,
        class_names=clean.class_names,
        provenance={
            "clean.digest": clean.digest,
            "parent.sha256": files.sha256(args.model),
            **weights,
            "selection": settings.selection.model_dump_json(),
        },
        attack_passes=batches.passes,
        watch=epoch_score.watch(len(val), settings.selection),
        keep=epoch_score.keep(recipe, len(val), settings.selection),
        device=processor,
    )


def _recipe(name: str) -> tuple[OnlineParams, Online]:
    settings = params.load(params.FILE, OnlineParams, keys(name))
    return settings, params.entry("online", settings.online, name)


def _fresh(
    recipe: Online, start: Model, where: str, clean: store.ImageSet
) -> tuple[models.ResNet, dict[str, str]]:
    """Return a network that did not start from the clean model, and the origin of its weights."""
    weights = networks.pretrained_weights(start, where)
    network = networks.build(start, len(clean.class_names), recipe.seed, weights, where)
    return network, checkpointed.first_weights(start, weights.sha256)


if __name__ == "__main__":
    console.run(train_online)
