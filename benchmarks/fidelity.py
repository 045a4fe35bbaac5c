"""Compare attacks in bf16 with attacks in fp32 on the same models and images.

Run `python -m benchmarks.fidelity --clean data/clean --model models/clean.safetensors
models/robust.safetensors`. The results of each architecture have their own file.

Both precisions attack all images that are not trained on. The results are stored as uint8, and the
exact fp32 network judges them. One more model is compared, because its gradients are of another
kind: the first given model after EPOCHS short epochs of online adversarial training.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torchvision import models

from benchmarks.tables import machine, markdown
from pipeline import attacks, networks
from pipeline.attacks.params import Attack
from pipeline.base import files, seeds, store
from pipeline.base.values import greatest
from pipeline.networks import device, matrix_products
from pipeline.train import mixing
from pipeline.train.images import HeldImages

RESULTS = Path(__file__).parent / "results"
BATCH, EPOCHS, TRAINED_ON = 128, 3, 10_000
SPECS: dict[str, dict[str, object]] = {
    "fgsm": {"attack": "FGSM", "eps": "8/255"},
    "pgd": {"attack": "PGD", "eps": "8/255", "alpha": "2/255", "steps": 10, "random_start": True},
}


def attacked(
    exact: models.ResNet, precision: str, spec: Attack, val: store.Block, processor: torch.device
) -> NDArray[np.uint8]:
    """Return the stored adversarial images of `val` (N, 3, H, W), made in one precision."""
    network = (
        matrix_products.Frozen(exact, val.images.shape[2], torch.bfloat16)
        if precision == "bf16"
        else exact
    )
    attack = attacks.build(spec, network, exact.fc.out_features)
    parts = []
    for start in range(0, len(val), BATCH):
        images = torch.from_numpy(val.images[start : start + BATCH]).to(processor)
        labels = torch.from_numpy(val.labels[start : start + BATCH]).to(processor)
        adv_images = attacks.perturb(attack, images / 255, labels, seeds.batch_seed(0, start))
        parts.append(attacks.quantise(adv_images, images, greatest(spec.eps)).cpu().numpy())
    return np.concatenate(parts)


def adversarially_trained(
    network: models.ResNet, train: store.Block, processor: torch.device
) -> models.ResNet:
    """Train the network for EPOCHS on PGD images made against itself at every step, and return it.

    The method is that of Madry et al. (ICLR 2018).
    """
    spec = Attack.model_validate(
        {"attack": "PGD", "eps": "8/255", "alpha": "4/255", "steps": 3, "random_start": True}
    )
    held = HeldImages(torch.from_numpy(train.images).to(processor), processor)
    batches = mixing.MixedBatches(held, {"clean": train.labels}, {"clean": BATCH}, 0, processor)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for epoch in range(EPOCHS):
        for number, (images, labels, _) in enumerate(batches.epoch(epoch)):
            attack = attacks.build(spec, networks.frozen_copy(network), network.fc.out_features)
            adv_images = attacks.perturb(attack, images, labels, seeds.batch_seed(epoch, number))
            optimizer.zero_grad()
            functional.cross_entropy(network.train()(adv_images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def compare(network: models.ResNet, val: store.Block, processor: torch.device) -> dict[str, Any]:
    """Return accuracy under both precisions, the share of equal pixels, and the largest step.

    Accuracies are in percent. The step is the largest distance from a clean image, in levels of
    1/255.
    """
    exact = networks.frozen_copy(network).to(processor)
    rows = {}
    for name, entry in SPECS.items():
        images = {
            precision: attacked(exact, precision, Attack.model_validate(entry), val, processor)
            for precision in ("fp32", "bf16")
        }
        accuracy = {
            precision: 100 * networks.accuracy(exact, made, val.labels, 500)
            for precision, made in images.items()
        }
        rows[name] = {
            **{f"{precision}_accuracy": round(value, 2) for precision, value in accuracy.items()},
            "difference_points": round(accuracy["bf16"] - accuracy["fp32"], 2),
            "equal_pixels": round(float((images["fp32"] == images["bf16"]).mean()), 3),
            "largest_step": int(np.abs(images["bf16"].astype(int) - val.images).max()),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, nargs="+")
    args = parser.parse_args()
    processor, clean = device.choose(), store.ImageSet(args.clean)
    train = clean.load("train")
    held_out = store.join([clean.load("val"), clean.load("test")])
    read = {path.stem: networks.load(path, class_names=clean.class_names) for path in args.model}
    judged = {name: checkpoint.network().to(processor) for name, checkpoint in read.items()}
    first = next(iter(read.values()))
    start, architecture = first.network().to(processor), first.architecture
    judged["adversarially trained"] = adversarially_trained(
        start, train.select(np.arange(len(train)) < TRAINED_ON), processor
    )
    results = {name: compare(network, held_out, processor) for name, network in judged.items()}
    about = {"machine": machine(), "architecture": architecture, "images": len(held_out)}
    files.write_json(RESULTS / f"fidelity_{architecture}.json", {**about, "models": results})
    print(f"{about['machine']}; {architecture}, {len(held_out):,} images\n")
    print(
        markdown(
            [
                {"model": name, "attack": attack, **row}
                for name, rows in results.items()
                for attack, row in rows.items()
            ]
        )
    )


if __name__ == "__main__":
    main()
