"""Stage `train_online@<name>`: the clean image set -> a model trained on adversarial images made anew for every batch."""

import argparse
from pathlib import Path

from pipeline import networks, params
from pipeline.base import console, files, store
from pipeline.base.errors import InputError
from pipeline.harden import epoch_score, moving_target, online_batches
from pipeline.networks import device, precision
from pipeline.train import checkpointed, mixing


def train_online() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the recipe under `online` in params.yaml")
    parser.add_argument("--clean", type=Path, required=True, help="folder of the clean image set")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the clean model")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint of the trained model")
    parser.add_argument("--history", type=Path, required=True, help="CSV with a line for every epoch")
    args = parser.parse_args()

    settings, processor = params.load(params.FILE), device.choose()
    if args.name not in settings.online:
        raise InputError(f"online.{args.name}: expected one of {', '.join(settings.online) or 'none yet'}, found {args.name!r}")
    recipe, clean = settings.online[args.name], store.ImageSet(args.clean)
    val = clean.load("val")
    first = networks.load(args.model, architecture=settings.model.architecture, class_names=clean.class_names)
    model = settings.model if isinstance(recipe.start, str) else recipe.start
    weights = networks.SCRATCH if isinstance(recipe.start, str) else networks.pretrained_weights(model, f"online.{args.name}.start")
    network = first.network() if isinstance(recipe.start, str) else networks.build(model, len(clean.class_names), recipe.seed, weights)
    fixed = recipe.adversary.against == params.CLEAN
    target = moving_target.Target(
        (first.network() if fixed else network).to(processor), val.images.shape[2], precision.dtype_for(recipe.precision, processor)
    )
    batches = online_batches.OnlineBatches(mixing.training_batches({params.CLEAN: clean}, recipe, processor), recipe, target, fixed=fixed)
    return checkpointed.train(
        network,
        batches,
        epoch_score.validation(recipe, val, settings, processor),
        recipe,
        text=f"train {args.name} online",
        out=args.out,
        history=args.history,
        architecture=model.architecture,
        class_names=clean.class_names,
        provenance={
            "clean.digest": clean.digest,
            "parent.sha256": files.sha256(args.model),
            **({} if isinstance(recipe.start, str) else {"weights": model.weights or "none", "weights.sha256": weights.sha256}),
            "selection": settings.selection.model_dump_json(),
        },
        attack_passes=(0, batches.passes),
        watch=epoch_score.collapse,
        device=processor,
    )


if __name__ == "__main__":
    console.run(train_online)
