"""Find out how many images a run will have, without preparing them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audit import lineage
from pipeline.base import params, store
from pipeline.base.errors import InputError
from pipeline.prepare import sources
from pipeline.prepare.params import Data

CLEAN_SET = Path("data/clean")
CHEAP = 2**28  # bytes; a larger source takes too long to read for a plan
PART_SHARE = 1 / 6  # assumed where a part of the source's own split is not read; that of CIFAR-10
N_CLASSES = 10  # assumed where they are not known; they hardly change the cost


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a run, as far as they decide its cost.

    `size` is in pixels per side. `origin` says where the numbers come from.
    """

    n_images: int
    n_val: int
    n_test: int = 0
    size: int
    n_classes: int
    origin: str

    @property
    def n_train(self) -> int:
        return self.n_images - self.n_val - self.n_test

    @property
    def n_judged(self) -> int:
        """The images that evaluations judge."""
        return self.n_test or self.n_val

    @property
    def n_bytes(self) -> int:
        """Bytes of one image in a store."""
        return 3 * self.size**2 + store.ROW_BYTES


def known(data: Data, n_images: int | None = None, where: str = str(params.FILE)) -> Images:
    """Return the images that `data` describes.

    `n_images` is what the user says. Without it, the number comes from the clean image set, from
    `data` or from a source that is quick to read. `where` names what `data` is from. Raises
    InputError where none of them tells.
    """
    n_images = n_images or data.n_images
    found = _prepared(data, n_images) or _declared(data, n_images, where) or _read(data, n_images)
    if found is None:
        raise InputError(_missing(data, n_images, where))
    if found.n_train < 1:
        raise InputError(
            f"data.n_val and n_test: expected fewer than the {found.n_images} images "
            f"({found.origin}) together, found {found.n_val} and {found.n_test}"
        )
    return found


def _prepared(data: Data, n_images: int | None) -> Images | None:
    """Return the images of the clean image set, if it has what `data` describes."""
    try:
        clean = store.ImageSet(CLEAN_SET)
    except InputError:
        return None
    if not _is_recorded(data):
        return None
    recorded = clean.attributes
    expected = {
        "source": data.source,
        "split.n_val": data.n_val,
        "split.n_test": data.n_test or None,
        "rows": n_images or len(clean),
        "image_size": data.image_size or recorded.get("image_size"),
    }
    if any(recorded.get(key) != value for key, value in expected.items()):
        return None
    split = clean.column("split")
    return Images(
        n_images=len(clean),
        n_val=_count(split, "val"),
        n_test=_count(split, "test"),
        size=int(recorded["image_size"]),
        n_classes=len(clean.class_names),
        origin=str(CLEAN_SET),
    )


def _is_recorded(data: Data) -> bool:
    """Return whether `dvc.lock` records a clean image set of `data`.

    The source must be what it was, if it is quick to read.
    """
    path = Path(data.path).expanduser()
    try:
        stage = lineage.recorded(Path())["prepare"]
        if Data.model_validate({"seed": data.seed, **stage.declared["data"]}) != data:
            return False
        if not path.exists() or _bytes_of(path) > CHEAP:
            return True
        return stage.deps.get(str(path)) == lineage.md5(path)
    except (LookupError, TypeError, OSError, ValueError):
        return False


def _declared(data: Data, n_images: int | None, where: str) -> Images | None:
    """Return the images that the params alone describe."""
    if n_images is None or data.image_size is None:
        return None
    origin = f"data.n_images of {where}" if n_images == data.n_images else "--images"
    return Images(
        n_images=n_images,
        n_val=_part(data.n_val, n_images),
        n_test=_part(data.n_test, n_images),
        size=data.image_size,
        n_classes=N_CLASSES,
        origin=origin,
    )


def _read(data: Data, n_images: int | None) -> Images | None:
    """Return the images of the source, if it is there and quick to read."""
    path = Path(data.path).expanduser()
    if data.source != "digits" and not (path.exists() and _bytes_of(path) <= CHEAP):
        return None
    source = sources.open_source(data)
    n_images = n_images or len(source.labels)
    counts = {"val": data.n_val, "test": data.n_test}
    if source.split is not None:
        counts |= {part: _count(source.split, part) for part in data.own_parts}
    return Images(
        n_images=n_images,
        n_val=_part(counts["val"], n_images),
        n_test=_part(counts["test"], n_images),
        size=source.image_size,
        n_classes=len(source.class_names),
        origin=f"the source {data.source}",
    )


def _part(count: int | str, n_images: int) -> int:
    return count if isinstance(count, int) else int(n_images * PART_SHARE)


def _count(split: NDArray[np.uint8], part: str) -> int:
    return int((split == store.SPLITS[part]).sum())


def _bytes_of(path: Path) -> int:
    found = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in found if file.is_file())


def _missing(data: Data, n_images: int | None, where: str) -> str:
    if n_images is None:
        return (
            f"data.n_images: not known before {data.path} is read (null in {where}); "
            "write --images N"
        )
    return (
        f"data.image_size: not known before {data.path} is read (null in {where}); "
        "set it, or run `dvc repro prepare` first"
    )
