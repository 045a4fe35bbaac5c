"""Stage `finetune@<model>`: a model, the clean image set and adversarial ones made against that model -> the next model."""

import argparse
from pathlib import Path

from pipeline import console, device, files, generation, mixing, networks, params, store, training
from pipeline.errors import InputError


def finetune() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True, help="folder of the clean image set")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the model to start from")
    parser.add_argument("--adversarial", type=Path, required=True, nargs="+", help="folders of image sets made against that model")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint of the next model")
    parser.add_argument("--history", type=Path, required=True, help="CSV with a line for every epoch")
    args = parser.parse_args()

    settings, processor = params.load(params.FILE), device.choose()
    clean, parent = store.ImageSet(args.clean), files.sha256(args.model)
    sets = {params.CLEAN: clean, **_open_sets(args.adversarial, clean, parent, settings)}
    if missing := settings.finetune.mix.keys() - sets.keys():
        raise InputError(f"finetune.mix.{min(missing)}: no such set among {', '.join(sets)}; add it to the finetune stage in dvc.yaml")
    checkpoint = networks.load(args.model, architecture=settings.model.architecture, class_names=clean.class_names)
    val = store.join([images.load("val") for images in sets.values()])
    fit = training.fit(
        checkpoint.network(),
        mixing.training_batches(sets, settings.finetune, processor),
        lambda judged: networks.accuracy(judged, val.images, val.labels, settings.evaluate.batch_size),
        settings.finetune,
        text="fine-tune on the mix",
        device=processor,
    )
    return training.save(
        fit,
        args.out,
        args.history,
        architecture=checkpoint.architecture,
        class_names=clean.class_names,
        provenance={"parent.sha256": parent, **{f"{name}.digest": images.digest for name, images in sets.items()}},
        settings=settings.finetune,
        device=processor,
    )


def _open_sets(paths: list[Path], clean: store.ImageSet, model_sha256: str, settings: params.Params) -> dict[str, store.ImageSet]:
    """The adversarial sets by attack, each held to this clean set, this model and these params."""
    sets = {}
    for path in paths:
        images = store.ImageSet(path)
        name = str(images.attributes.get("attack"))
        if name not in settings.attacks:
            raise InputError(f"{path}: made by an attack {name!r} that is not under attacks in params.yaml ({', '.join(settings.attacks)})")
        images.expect(
            generation.identity(clean, model_sha256, name, settings.attacks[name], settings.generate),
            "made from another model, other params or another clean set",
        )
        sets[name] = images
    return sets


if __name__ == "__main__":
    console.run(finetune)
