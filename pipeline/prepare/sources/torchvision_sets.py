"""Read the sources `cifar10`, `cifar100` and `svhn` by torchvision.

Only their training parts are used, never their test parts. References: Krizhevsky, "Learning
Multiple Layers of Features from Tiny Images", 2009; Netzer et al., "Reading Digits in Natural
Images with Unsupervised Feature Learning", 2011.
"""

import hashlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from pipeline.base.errors import InputError
from pipeline.prepare.sources.common import Found, Images, Stack

FILES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "train_32x32.mat",
}


def found(name: str, root: Path) -> Found:
    """Return the data set in the folder `root`.

    If it is missing, torchvision downloads it. torchvision also checks its MD5. Raises InputError
    where the download fails.
    """
    dataset = _open(name, root)
    images: Images = np.asarray(dataset.data)
    labels = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
    first = images.transpose(0, 3, 1, 2) if images.shape[-1] == 3 else images
    return Found(
        images=Stack(shape=images.shape, dtype=images.dtype, read=images.__getitem__),
        labels=labels,
        class_names=tuple(names) if (names := getattr(dataset, "classes", None)) else None,
        sha256=hashlib.sha256(
            np.ascontiguousarray(first).data.tobytes() + labels.astype(np.int64).tobytes()
        ).hexdigest(),
    )


def _open(name: str, root: Path) -> Any:
    options: dict[str, Any] = {"split": "train"} if name == "svhn" else {"train": True}
    constructor = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
    }[name]
    try:
        return constructor(root=root, download=False, **options)
    except RuntimeError:
        pass  # torchvision raises it where the data set is missing or has another MD5
    try:
        return constructor(root=root, download=True, **options)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{root}: {name} is not there whole and could not be downloaded ({reason}); "
            f"put {FILES[name]} there (a .tar.gz unpacked)"
        ) from error
