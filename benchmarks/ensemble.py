"""Compare the ensemble of params.yaml with AutoAttack's standard settings on the same images.

Run `python -m benchmarks.ensemble`.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.tables import machine
from pipeline import document, networks
from pipeline.base import console, params, store
from pipeline.evaluate import ensemble, whitebox
from pipeline.evaluate.params import Ensemble
from pipeline.networks import device, scores


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["clean", "robust", "refreshed"],
        help="names of models in models/",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=60,
        help="validation images, the first of those that an evaluation judges",
    )
    args = parser.parse_args()

    settings, processor = document.load(params.FILE), device.choose()
    assert settings.evaluate.ensemble is not None
    clean = store.ImageSet(Path("data/clean"))
    val = clean.load("val")
    rows = scores.sample(val, args.images, settings.evaluate.seed)
    block = val.select(np.isin(np.arange(len(val)), rows))
    own, eps = (
        settings.evaluate.ensemble,
        settings.evaluate.threats[settings.evaluate.curves.threat].eps,
    )
    standard = own.model_copy(update=ensemble.STANDARD)
    console.say(
        f"{machine()}; {len(block)} images, eps {eps * 255:.3g}/255; accuracy in %, seconds"
    )
    for name in args.models:
        path, architecture = Path("models", f"{name}.safetensors"), settings.architecture_of(name)
        network = (
            networks.load(path, architecture=architecture, class_names=clean.class_names)
            .network()
            .to(processor)
        )
        target = whitebox.Target.of(
            network,
            len(clean.class_names),
            batch_size=whitebox.BATCH_SIZE,
            seed=settings.evaluate.seed,
            image_size=block.images.shape[2],
        )
        for chosen in (own, standard):
            say_accuracy(name, target, block, chosen, eps)
    return "done"


def say_accuracy(
    name: str, target: whitebox.Target, block: store.Block, chosen: Ensemble, eps: float
) -> None:
    started = time.perf_counter()
    standing, about = ensemble.withstands(target, block, chosen, eps)
    console.say(
        f"{name}: {about['attack']}: {100 * standing.mean():.1f} "
        f"({time.perf_counter() - started:.0f} s)"
    )


if __name__ == "__main__":
    console.run(main)
