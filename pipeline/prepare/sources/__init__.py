"""Open a source of labelled images.

Readers find what is in a file. One normaliser converts it to the same form for every source.
"""

from pathlib import Path

from pipeline.prepare.params import Data
from pipeline.prepare.sources import normaliser
from pipeline.prepare.sources.common import Found, Source, check_levels

__all__ = ["Source", "open_source"]


def open_source(data: Data) -> Source:
    """Return the labelled images that `data` describes.

    Only the modules that this source needs are imported. Raises InputError for a source that is
    missing or unreadable, or whose images or labels have a form that is not plain.
    """
    path = Path(data.path).expanduser()
    return check_levels(path, _opened(data, path))


def _opened(data: Data, path: Path) -> Source:
    match data.source:
        case "digits":
            from pipeline.prepare.sources import digits

            return digits.read(data.image_size or digits.SIZE)
        case "image_folder":
            from pipeline.prepare.sources import image_folder

            return image_folder.read(path, data)
    return normaliser.normalised(path, _found(data, path), data.image_size)


def _found(data: Data, path: Path) -> Found:
    match data.source:
        case "npz":
            from pipeline.prepare.sources import arrays

            return arrays.found_npz(path, data.arrays, data.own_parts)
        case "npy":
            from pipeline.prepare.sources import arrays

            return arrays.found_npy(path, data.arrays, data.own_parts)
        case "hdf5":
            from pipeline.prepare.sources import hdf5_arrays

            return hdf5_arrays.found(path, data.arrays, data.own_parts)
        case "task_dataset":
            from pipeline.prepare.sources import task_dataset

            return task_dataset.found(path, data.image_size)
        case "cifar10" | "cifar100" | "svhn":
            from pipeline.prepare.sources import torchvision_sets

            return torchvision_sets.found(data.source, path)
    raise AssertionError(data.source)
