"""Small real files in the formats of others, for tests to read."""

import hashlib
import io
import os
import pickle
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision import datasets, models
from torchvision.models import Weights

from pipeline.attacks.parameters import ATTACK_PARAMETERS

# For every parameter of torchattacks' attacks a value that makes it quick.
PARAMETERS = {
    "alpha": "2/255", "steps": 2, "random_start": True, "decay": 1.0, "eot_iter": 1,
    "loss": "ce", "m": 2, "N": 2, "beta": 0.9, "scale": 10,
    "std": 0.1, "resize_rate": 0.9, "diversity_prob": 0.5, "kernel_name": "gaussian",
    "len_kernel": 5, "nsig": 3, "n_restarts": 1,
    "rho": 0.75, "alpha_max": 0.1, "eta": 1.05, "multi_targeted": False, "n_queries": 5,
    "p_init": 0.8, "resc_schedule": True,
    "version": "rand", "num_iter_set": 2, "momentum": 1.0, "amplification": 2.0,
    "prob": 0.7, "project_factor": 0.8,
    "noise_type": "gaussian", "noise_sd": 0.1, "noise_batch_size": 2, "batch_max": 8,
    "delta": 0.01, "lr": 0.01, "nb_iter": 1, "nb_sample": 4, "max_batch_size": 4,
}  # fmt: skip


def attack_entry(name: str) -> dict[str, object]:
    """An entry of `attacks` with all its parameters."""
    return {
        "attack": name,
        "eps": "8/255",
        **{key: PARAMETERS[key] for key in ATTACK_PARAMETERS[name]},
    }


class TaskDataset(torch.utils.data.Dataset):
    """The class as its authors have it; it is saved under `__main__`, as their script does."""

    def __init__(self, transform=None):
        self.ids, self.imgs, self.labels, self.transform = [], [], [], transform


def under_main(monkeypatch, *kinds):
    """Make pickles name these classes as parts of `__main__`."""
    for kind in kinds:
        monkeypatch.setattr(kind, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], kind.__name__, kind, raising=False)


def save_task_dataset(path: Path, images, classes, transform=None, **changes) -> Path:
    """Save a real Train.pt of uint8 arrays (H, W, 3) or (H, W), with ids from 500.

    Call `under_main` first.
    """
    dataset = TaskDataset(transform)
    dataset.ids = [500 + row for row in range(len(images))]
    dataset.imgs = [Image.fromarray(image) for image in images]
    dataset.labels = [int(label) for label in classes]
    for name, value in changes.items():
        setattr(dataset, name, value)
    torch.save(dataset, path)
    return path


def write_cifar(root: Path, monkeypatch, name, pixels, labels):
    """Write a small CIFAR in its own layout, with the MD5s that torchvision compares.

    `pixels` are uint8 (N, 3072).
    """
    constructor, key, names_key = {
        "cifar10": (datasets.CIFAR10, "labels", "label_names"),
        "cifar100": (datasets.CIFAR100, "fine_labels", "fine_label_names"),
    }[name]
    base = root / constructor.base_folder
    base.mkdir(parents=True)
    names = [f"class {label}" for label in range(max(labels) + 1)]
    for file, content in (
        ("train_part", {"data": pixels, key: labels}),
        ("names", {names_key: names}),
    ):
        (base / file).write_bytes(pickle.dumps(content))
    md5 = {
        file: hashlib.md5((base / file).read_bytes()).hexdigest()
        for file in ("train_part", "names")
    }
    monkeypatch.setattr(constructor, "train_list", [["train_part", md5["train_part"]]])
    monkeypatch.setattr(constructor, "test_list", [])
    monkeypatch.setattr(
        constructor, "meta", {"filename": "names", "key": names_key, "md5": md5["names"]}
    )


def state_dict(architecture: str) -> dict[str, torch.Tensor]:
    """Return random tensors for a stock network of 1,000 classes."""
    torch.manual_seed(9)
    return without_counts(models.get_model(architecture))


def without_counts(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors under the names in torchvision's files, which count no batches."""
    tensors = network.state_dict()
    return {
        name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")
    }


def state_dict_bytes(architecture: str) -> bytes:
    """A file of such tensors."""
    buffer = io.BytesIO()
    torch.save(state_dict(architecture), buffer)
    return buffer.getvalue()


def replace_weights(monkeypatch, home: Path, architecture: str, content: bytes, host: str) -> Path:
    """Let torchvision's IMAGENET1K_V1 of an architecture be `content` at http://host/.

    Returns where torch's hub keeps it.
    """
    name = f"{architecture}-{hashlib.sha256(content).hexdigest()[:8]}.pth"

    class StandIn(models.WeightsEnum):
        IMAGENET1K_V1 = Weights(url=f"http://{host}/{name}", transforms=None, meta={})

    monkeypatch.setattr(models, "get_model_weights", lambda _: StandIn)
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home / "hub" / "checkpoints" / name


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch harmed",)
