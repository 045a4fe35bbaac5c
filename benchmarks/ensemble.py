"""Compare the ensemble of params.yaml, AutoAttack's standard settings and its official code.

Run `python -m benchmarks.ensemble` in a project. With `--official PATH`, the ensemble at the
standard's settings is compared image by image with the code that the authors of AutoAttack
published (github.com/fra31/auto-attack; PATH is a checkout, which this project does not contain).
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.tables import machine
from pipeline import document, networks
from pipeline.base import console, params, store
from pipeline.base.errors import InputError
from pipeline.document import Document
from pipeline.evaluate import ensemble
from pipeline.evaluate.params import Ensemble
from pipeline.evaluate.target import BATCH_SIZE, Target
from pipeline.networks import device, scores
from pipeline.networks.precision import exact
from pipeline.networks.scores import Mask

STANDARD = Ensemble.model_validate({**ensemble.STANDARD, "n_eval": 1})


def main() -> str:
    args = _parser().parse_args()
    settings = document.load(params.FILE)
    clean = store.ImageSet(Path("data/clean"))
    judged = clean.load(clean.judged)
    rows = scores.sample(judged, args.images, settings.evaluate.seed)
    block = judged.select(np.isin(np.arange(len(judged)), rows))
    eps = settings.evaluate.threats[settings.evaluate.curves.threat].eps
    console.say(
        f"{machine()}; {len(block)} images, eps {eps * 255:.3g}/255; accuracy in %, seconds"
    )
    for name in args.models:
        target = _target(name, settings, clean)
        own = settings.evaluate.ensemble
        if own is not None and args.official is None:
            _ours(name, target, block, own, eps)
        ours = _ours(name, target, block, STANDARD, eps)
        if args.official is not None:
            official = _official(name, target, block, eps, args.official)
            console.say(f"{name}: {_agreement(ours, official)}")
    return "done"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    models = ["clean", "robust", "refreshed"]
    parser.add_argument("--models", nargs="+", default=models, help="names of models in models/")
    parser.add_argument("--images", type=int, default=60, help="those that an evaluation judges")
    parser.add_argument("--official", type=Path, help="a checkout of AutoAttack's own code")
    return parser


def _target(name: str, settings: Document, clean: store.ImageSet) -> Target:
    path, names = Path("models", f"{name}.safetensors"), clean.class_names
    checkpoint = networks.load(path, architecture=settings.architecture_of(name), class_names=names)
    return Target.of(
        checkpoint.network().to(device.choose()),
        len(names),
        batch_size=BATCH_SIZE,
        seed=settings.evaluate.seed,
        image_size=clean.image_shape[1],
    )


def _ours(name: str, target: Target, block: store.Block, chosen: Ensemble, eps: float) -> Mask:
    """Print the accuracy under an ensemble, and return which images (N,) withstand it."""
    started = time.perf_counter()
    standing, about = ensemble.withstands(target, block, chosen, eps)
    _say(name, about["attack"], standing, started)
    return standing


@exact()
def _official(name: str, target: Target, block: store.Block, eps: float, checkout: Path) -> Mask:
    """Return which images (N,) withstand AutoAttack's standard version.

    Its code attacks and judges the network itself, in float32. Raises InputError where PATH does
    not hold that code.
    """
    sys.path.insert(0, str(checkout))
    try:
        from autoattack import AutoAttack
    except ImportError as error:
        raise InputError(f"--official: {checkout}: expected a checkout ({error})") from error
    started = time.perf_counter()
    size = target.batch_size
    attack = AutoAttack(
        target.network, norm="Linf", eps=eps, seed=target.seed, device=target.device, verbose=False
    )
    images, labels = target.tensors(block, np.arange(len(block)))
    adv_images = attack.run_standard_evaluation(images, labels, bs=size)
    if (adv_images - images).abs().max() > eps + 1e-6:
        raise InputError("the official code left the eps ball")
    kept = [
        networks.is_right(target.network, adv_images[part], labels[part])
        for part in _parts(len(labels), size)
    ]
    standing: Mask = np.concatenate(kept)
    _say(name, "AutoAttack's own code, standard version", standing, started)
    return standing


def _parts(n_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n_rows, size))


def _say(name: str, attack: str, standing: Mask, started: float) -> None:
    seconds = time.perf_counter() - started
    console.say(f"{name}: {attack}: {100 * standing.mean():.1f} ({seconds:.0f} s)")


def _agreement(ours: Mask, official: Mask) -> str:
    """Return in words how many images both ensembles decide alike."""
    same = ours == official
    return (
        f"both decide {same.sum()} of {len(same)} images alike ({same.mean():.1%}); only ours "
        f"finds {(official & ~ours).sum()}, only the official code {(ours & ~official).sum()}"
    )


if __name__ == "__main__":
    console.run(main)
