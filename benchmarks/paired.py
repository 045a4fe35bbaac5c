"""Compare two models under the same fresh attacks, image by image.

Run `python -m benchmarks.paired --models models/a.safetensors models/b.safetensors --clean
data/clean`. Both models are judged on the same images, so chance weighs less on the difference of
their accuracies than on each of them. Threats are those of `evaluate` in params.yaml. More than one
clean set may be given; their judged images are put together.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import machine, markdown
from pipeline import document, networks
from pipeline.base import console, params, store
from pipeline.base.errors import InputError
from pipeline.evaluate import whitebox
from pipeline.evaluate.params import Evaluate
from pipeline.evaluate.target import BATCH_SIZE, Target
from pipeline.networks import device
from pipeline.networks.precision import exact
from pipeline.networks.scores import Mask

NORMAL_95 = 1.959964


@exact()
def found(
    path: Path, block: store.Block, names: tuple[str, ...], settings: Evaluate
) -> dict[str, Mask]:
    """Return which images (N,) a model gets right unattacked and under each threat."""
    network = networks.load(path, class_names=names).network().to(device.choose())
    target = Target.of(
        network,
        len(names),
        batch_size=BATCH_SIZE,
        seed=settings.seed,
        image_size=block.images.shape[2],
    )
    attacked = {
        name: whitebox.withstands(target, block, threat, f"{path.stem}, {name}").standing
        for name, threat in settings.threats.items()
    }
    return {"clean": target.is_right(block), **attacked}


def rows(one: Mapping[str, Mask], other: Mapping[str, Mask]) -> Iterator[dict[str, Any]]:
    """Yield a row for each threat: both accuracies in percent, and their difference in points.

    Half the width of the difference's 95 % interval is that of paired shares (McNemar, 1947): the
    images that both models get right, or both wrong, say nothing.
    """
    for name, first in one.items():
        change = other[name].astype(int) - first
        half = NORMAL_95 * np.std(change) / np.sqrt(len(change))
        yield {
            "accuracy": name,
            "first, %": f"{100 * first.mean():.1f}",
            "second, %": f"{100 * other[name].mean():.1f}",
            "second - first, points": f"{100 * change.mean():+.1f} ±{100 * half:.1f}",
            "only first": int((change < 0).sum()),
            "only second": int((change > 0).sum()),
        }


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, nargs=2, required=True, help="two checkpoints")
    parser.add_argument("--clean", type=Path, nargs="+", required=True, help="clean image sets")
    args = parser.parse_args()
    settings = document.load(params.FILE).evaluate
    sets = [store.ImageSet(path) for path in args.clean]
    for images in sets[1:]:
        if (images.class_names, images.image_shape) != (sets[0].class_names, sets[0].image_shape):
            raise InputError(f"{images.path}: other classes or sizes than those of {sets[0].path}")
    block = store.join([images.load(images.judged) for images in sets])
    one, other = (found(path, block, sets[0].class_names, settings) for path in args.models)
    print(f"{machine()}; {len(block):,} images\n\n{markdown(list(rows(one, other)))}")
    return f"{args.models[0]} and {args.models[1]}: compared"


if __name__ == "__main__":
    console.run(main)
