"""What three processes do together in the tests of a group of workers.

`python -m tests.train.workers FOLDER` runs one process alone and a group of three. They are forks
of one that has no threads yet, so that torch is imported once.
"""

import copy
import multiprocessing
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from pipeline import document
from pipeline.harden import moving_target, refreshed_batches
from pipeline.harden.params import Finetune
from pipeline.networks.scores import accuracy_on
from pipeline.train import augmentation, checkpointed, group, loop
from pipeline.train.step import Step
from tests.conftest import ROOT, held_batches, make_block, write_set
from tests.harden.test_batches import streams
from tests.narrow import NarrowResNet

CPU = torch.device("cpu")
SIZE = 3


def recipe(**changes):
    update = {"batch_size": 16, "epochs": 3, "warmup_epochs": 1.0, "precision": "fp32", **changes}
    return document.load(ROOT / "params.yaml").clean.model_copy(update=update)


def flat():
    """A network without BatchNorm: its gradients are sums over images."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    network.register_buffer("unused", torch.zeros(1))
    return network


def resnet():
    torch.manual_seed(0)
    return NarrowResNet(num_classes=3)


def gradients(folder):
    """Four steps, of which the last has one image for two of three workers, and none for one."""
    network = flat()
    batches = augmentation.AugmentedBatches(
        held_batches({"clean": make_block(50)}, {"clean": 16}), "flip+crop", seed=0
    )
    step = Step(network, recipe(), CPU, None)
    sizes = []
    for batch in batches.epoch(0):
        sizes.append(len(batch[1]))
        step(*batch, lr=0.1)
    return {"network": network.state_dict(), "totals": step.totals, "sizes": sizes}


def tiny_parts(folder):
    """The last batch has two images: a ResNet cannot train on one, and one worker has none."""
    batches = augmentation.AugmentedBatches(
        held_batches({"clean": make_block(50, size=32)}, {"clean": 16}), "flip", seed=0
    )
    fits = [
        loop.fit(
            resnet(), batches, accuracy_on(make_block(8, size=32)), recipe(epochs=2, **changes),
            text="t", device=CPU,
        )
        for changes in ({}, {}, {"precision": "bf16", "ema": 0.9})
    ]  # fmt: skip
    return {"fits": [(fitted.state_dict, fitted.history) for fitted in fits]}


def validated(folder):
    """Accuracy on images that all workers share, more and fewer than there are workers."""
    network, shared = resnet().eval(), group.current()
    found = []
    for n in (20, 2):
        images = make_block(n, size=32)
        found.append(
            (shared.validation(images, accuracy_on)(network), accuracy_on(images)(network))
        )
    return {"found": found}


class StoppedError(Exception):
    pass


def refreshed(folder):
    """Refreshed images, whose rows belong to workers; undisturbed, and resumed after an epoch."""
    runs = []
    for name, stop_after in (("whole", None), ("resumed", 2)):
        own = folder / f"{name}-{group.current().rank}"
        sets = {part: write_set(own / part, block) for part, block in streams().items()}
        entry = document.load(ROOT / "params.yaml").finetuned["robust"].model_dump()
        entry |= recipe().model_dump(include={"batch_size", "epochs", "warmup_epochs", "precision"})
        refresh = {"every": 1, "steps": 1, "alpha": "eps/2", "warm_start": False}
        settings = Finetune.model_validate({**entry, "augment": "flip+crop", "refresh": refresh})
        runs.append(_trained(sets, settings, own, folder / name, stop_after))
    return {"whole": runs[0], "resumed": runs[1]}


def _trained(sets, settings, own, out, stop_after):
    epochs = []

    def batches_for(network):
        target = moving_target.Target(network, 16, torch.float32)
        return refreshed_batches.RefreshedBatches(sets, settings, target, CPU, own)

    def validate(network):
        epochs.append(1)
        if len(epochs) == stop_after:
            raise StoppedError
        return accuracy_on(make_block(8))(network)

    def run():
        network = resnet()
        batches = batches_for(network)
        stored = batches.state["images"].clone()
        checkpointed.train(
            network, batches, validate, settings, text="t", out=out / "m.safetensors",
            history=out / "h.csv", architecture="resnet18", class_names=["a", "b", "c"],
            provenance={}, device=CPU,
        )  # fmt: skip
        return stored, batches.state["images"]

    try:
        stored, images = run()
    except StoppedError:
        distributed.barrier()
        kept = [path.name for path in out.iterdir()]
        stored, images = run()
    else:
        kept = []
    distributed.barrier()  # the first worker writes the last files
    return {
        "stored": stored,
        "images": copy.copy(images),
        "kept": kept,
        "files": {path.name: path.read_bytes().decode("latin-1") for path in out.iterdir()},
        "epochs": len(epochs),
    }


def work(rank, size, folder):
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
        )
    found = {
        scenario.__name__: scenario(folder)
        for scenario in (gradients, tiny_parts, validated, refreshed)[: 1 if size == 1 else None]
    }
    torch.save(found, folder / f"{rank}.pt")
    if size > 1:
        distributed.destroy_process_group()


def main(folder):
    torch.optim.SGD([torch.zeros(1)])  # imports torch's compiler, which takes longer than the rest
    forks = multiprocessing.get_context("fork")
    groups = {folder / "alone": 1, folder / "together": SIZE}
    for each in groups:
        each.mkdir()
    processes = [
        forks.Process(target=work, args=(rank, size, each))
        for each, size in groups.items()
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
