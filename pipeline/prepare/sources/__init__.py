"""Open a source of labelled images.

Every source is read into the same uint8 arrays and checked in the same way.
"""

from pathlib import Path

from pipeline.prepare.params import Data
from pipeline.prepare.sources.common import Source, check_levels

__all__ = ["Source", "open_source"]


def open_source(data: Data) -> Source:
    """Return the labelled images that `data` describes.

    Only the modules that this source needs are imported. Raises InputError for a source that is
    missing or unreadable, or whose images or labels have another type, shape or range.
    """
    return check_levels(Path(data.path), _opened(data))


def _opened(data: Data) -> Source:
    path, size = Path(data.path), data.image_size
    match data.source:
        case "digits":
            from pipeline.prepare.sources import digits

            return digits.read(size)
        case "npz":
            from pipeline.prepare.sources import arrays

            return arrays.read_npz(path, size)
        case "hdf5":
            from pipeline.prepare.sources import arrays

            assert data.hdf5 is not None  # the section `data` checks this
            return arrays.read_hdf5(path, size, data.hdf5)
        case "task_dataset":
            from pipeline.prepare.sources import task_dataset

            return task_dataset.read(path, size)
        case "image_folder":
            from pipeline.prepare.sources import image_folder

            return image_folder.read(path, size)
        case "cifar10" | "cifar100" | "svhn":
            from pipeline.prepare.sources import torchvision_sets

            return torchvision_sets.read(data.source, path, size)
