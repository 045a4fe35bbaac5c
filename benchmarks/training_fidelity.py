"""Compare training in bf16 with training in fp32, epoch by epoch, over several seeds.

Run `python -m benchmarks.training_fidelity --clean data/clean --architecture resnet18`. Training in
fp32 is torchvision's own network. The recipe is that of `clean` in params.yaml, from scratch. Both
precisions begin with the same weights and see the same images in the same order. The table gives
the mean accuracy over all seeds on images that are not trained on.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.tables import machine, markdown
from pipeline import document, networks
from pipeline.base import files, params, store
from pipeline.base.values import CLEAN
from pipeline.networks import device, scores
from pipeline.networks.params import Model
from pipeline.train import augmentation, loop, mixing
from pipeline.train.params import Training

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "bf16")


def accuracies(
    clean: store.ImageSet, held_out: store.Block, model: Model, settings: Training
) -> list[float]:
    """Return the accuracy in percent after every epoch of one training."""
    processor = device.choose()
    network = networks.build(
        model, len(clean.class_names), settings.seed, networks.pretrained_weights(model)
    )
    batches = augmentation.AugmentedBatches(
        mixing.training_batches({CLEAN: clean}, settings, processor),
        settings.augment,
        settings.seed,
    )
    fitted = loop.fit(
        network,
        batches,
        scores.accuracy_on(held_out),
        settings,
        text=f"{settings.precision}, seed {settings.seed}",
        device=processor,
    )
    return [100 * row["val_accuracy"] for row in fitted.history]


def table(found: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return a row for every epoch, from the accuracies of every seed and epoch.

    `noise` is what chance gives: the standard error of a difference of two means over the seeds.
    """
    rows = []
    by_epoch = (zip(*found[name], strict=True) for name in PRECISIONS)
    for epoch, at in enumerate(zip(*by_epoch, strict=True), 1):
        fp32, bf16 = (statistics.fmean(each) for each in at)
        noise = sum(statistics.variance(each) / len(each) for each in at) ** 0.5
        rows.append(
            {
                "epoch": epoch,
                "fp32, %": round(fp32, 2),
                "bf16, %": round(bf16, 2),
                "difference, points": round(bf16 - fp32, 2),
                "noise, points": round(noise, 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    clean = store.ImageSet(args.clean)
    held_out = clean.load(clean.judged)
    model = Model.model_validate({"architecture": args.architecture, "weights": None})
    own = document.load(params.FILE).clean
    found: dict[str, list[list[float]]] = {name: [] for name in PRECISIONS}
    for seed in range(args.seeds):
        for name in PRECISIONS:
            update = {"precision": name, "seed": seed, "epochs": args.epochs}
            settings = own.model_copy(update=update)
            found[name].append(accuracies(clean, held_out, model, settings))
    rows = table(found)
    about = {"machine": machine(), "architecture": args.architecture, "images": len(held_out)}
    files.write_json(
        RESULTS / f"training_{args.architecture}.json",
        {**about, "trained_on": len(clean.load("train")), "accuracies": found},
    )
    print(f"{machine()}; {args.seeds} seeds, {len(held_out):,} images:\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
