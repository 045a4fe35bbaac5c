"""Stages `finetune@<model>` and `variant@<name>`: a model, the clean image set and adversarial ones made against it -> another model.

Adversarial sets of further models may join (Tramèr et al., "Ensemble Adversarial Training", ICLR 2018).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision import models

from pipeline import attacks, networks, params
from pipeline.base import console, files, store
from pipeline.base.errors import InputError
from pipeline.harden import epoch_score, moving_target, refreshed_batches, refreshed_sets
from pipeline.networks import device, precision
from pipeline.train import augmentation, loop, mixing


def finetune() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True, help="folder of the clean image set")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the model to start from")
    parser.add_argument(
        "--adversarial", type=Path, required=True, nargs="+", help="folders of image sets, those made against one model in each"
    )
    parser.add_argument("--sources", type=Path, default=[], nargs="*", help="checkpoints of other models that sets were made against")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint of the next model")
    parser.add_argument("--history", type=Path, required=True, help="CSV with a line for every epoch")
    parser.add_argument("--refreshed", type=Path, required=True, help="folder of the refreshed image sets; empty where none are refreshed")
    parser.add_argument("--variant", help="name of the recipe under `variants` in params.yaml; without it, `finetune`")
    args = parser.parse_args()

    settings, processor = params.load(params.FILE), device.choose()
    if args.variant is not None and args.variant not in settings.variants:
        raise InputError(f"variants.{args.variant}: expected one of {', '.join(settings.variants) or 'none yet'}, found {args.variant!r}")
    recipe, clean = settings.recipe(args.variant), store.ImageSet(args.clean)
    first = networks.load(args.model, architecture=settings.model.architecture, class_names=clean.class_names)
    for path in args.sources:  # to refuse what is no model
        networks.load(path, architecture=settings.model.architecture, class_names=clean.class_names)
    attacked = {**{files.sha256(path): path.stem for path in args.sources}, files.sha256(args.model): ""}
    sets = _open_sets(args.adversarial, clean, attacked, settings, args.variant)
    network, val = first.network(), clean.load("val")
    batches = _batches(recipe, sets, network, processor, args.out.parent)
    mixed = val if recipe.best_on == "robust" else store.join([sets[name].load("val") for name in recipe.mix])
    mixed_in = {name: images for name, images in sets.items() if name != params.CLEAN}

    return loop.train(
        network,
        batches,
        epoch_score.validation(recipe, mixed, settings, processor),
        recipe,
        text="fine-tune on the mix",
        out=args.out,
        history=args.history,
        architecture=first.architecture,
        class_names=clean.class_names,
        provenance={
            **{f"source.{name}.sha256" if name else "parent.sha256": sha256 for sha256, name in attacked.items()},
            **{f"{name}.digest": images.digest for name, images in sets.items()},
            "selection": settings.selection.model_dump_json(),
        },
        attack_passes=(
            sum(attacks.passes(images) for images in mixed_in.values()),
            batches.passes if isinstance(batches, refreshed_batches.RefreshedBatches) else 0,
        ),
        also_write=lambda checkpoint: _store_refreshed(args.refreshed, mixed_in, batches, checkpoint, args.out, processor),
        device=processor,
    )


def _batches(
    recipe: params.Finetune,
    sets: dict[str, store.ImageSet],
    network: models.ResNet,
    processor: torch.device,
    folder: Path,
) -> augmentation.AugmentedBatches | refreshed_batches.RefreshedBatches:
    """The recipe's mixed batches; where it refreshes them, against `network` as it trains, in a working copy in `folder`."""
    if recipe.refresh is None:
        return augmentation.AugmentedBatches(mixing.training_batches(sets, recipe, processor), recipe.augment, recipe.seed)
    dtype = precision.dtype_for(recipe.precision, processor)
    target = moving_target.Target(network.to(processor), sets[params.CLEAN].image_shape[2], dtype)
    return refreshed_batches.RefreshedBatches(sets, recipe, target, processor, folder)


def _store_refreshed(
    folder: Path,
    sets: Mapping[str, store.ImageSet],
    batches: augmentation.AugmentedBatches | refreshed_batches.RefreshedBatches,
    checkpoint: networks.Checkpoint,
    out: Path,
    processor: torch.device,
) -> None:
    """Store what refreshing has made of the adversarial sets of the mix, if it did; `out` is the file of `checkpoint`."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(batches, refreshed_batches.RefreshedBatches):
        network, sha256 = checkpoint.network().to(processor), files.sha256(out)
        for name, images in sets.items():
            refreshed_sets.store_refreshed(images, batches.working_copy(name), network, sha256, batches.refresh, folder / name)


def _open_sets(
    folders: list[Path], clean: store.ImageSet, attacked: Mapping[str, str], settings: params.Params, variant: str | None
) -> dict[str, store.ImageSet]:
    """Return the clean set and the mixed adversarial ones by their names in the mix, each checked against its model and these params.

    `attacked` names the models by their SHA-256; the parent has no name. Raises InputError for a mix that asks for other sets.
    """
    sets, mix = {params.CLEAN: clean}, settings.recipe(variant).mix
    mixed_attacks = {name.split("-")[-1] for name in mix}
    # A folder that is listed for all variants is the parent's own for some.
    for path in dict.fromkeys(path for folder in folders for path in store.paths_below(folder)):
        images = store.ImageSet(path)
        attack, model = (str(images.attributes.get(key)) for key in ("attack", "model.sha256"))
        if attack not in mixed_attacks:
            continue
        if model not in attacked:
            raise InputError(f"{path}: made from another model than those of --model and --sources; name its own there, or run `dvc repro`")
        identity = attacks.identity(clean, model, attack, settings.attacks[attack], settings.generate)
        images.expect({"kind": "adversarial", **identity}, "made with other params or from another clean set")
        name = f"{attacked[model]}-{attack}".removeprefix("-")
        if name not in mix:
            continue
        if name in sets:
            raise InputError(f"{path}: {name} is {sets[name].path} already; leave one of them out")
        sets[name] = images
    if missing := mix.keys() - sets.keys():
        where = f"{settings.section(variant)}.mix.{min(missing)}"
        raise InputError(f"{where}: no such set in {', '.join(map(str, folders))} (expected one of {', '.join(sets)})")
    return sets


if __name__ == "__main__":
    console.run(finetune)
