"""Define the sections `data` and `store` of `params.yaml`."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.values import Count, Section, Seed

# DVC takes no input that holds its outputs.
RESULTS = (
    "data/adversarial", "data/clean", "data/refreshed", "metrics", "models", "plots", "report",
)  # fmt: skip
MIN_SIZE, MAX_SIZE = 8, 1024  # pixels per side
FromSource = Literal["from_source"]
FROM_SOURCE: FromSource = "from_source"
Part = Literal["val", "test"]  # of a data set, besides its training part
HELD_OUT: tuple[Part, ...] = ("val", "test")
ARRAYS = ("npz", "npy", "hdf5")
SPLIT = (*ARRAYS, "image_folder")  # sources that may have their own split
ONLY_FOR = {
    "arrays": ARRAYS,
    "follow_links": ("image_folder",),
    "skip_broken": ("image_folder",),
}
Source = Literal[
    "digits", "npz", "npy", "hdf5", "task_dataset", "image_folder", "cifar10", "cifar100", "svhn"
]


class Arrays(Section):
    """The names of the arrays in a user's own file, where they are not the usual ones.

    `val_images` and `val_labels` are those of the source's own validation part, `test_images` and
    `test_labels` those of its test part.
    """

    images: str
    labels: str
    val_images: str | None = None
    val_labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        for part in HELD_OUT:
            names = [f"{part}_images", f"{part}_labels"]
            if sum(getattr(self, name) is None for name in names) == 1:
                raise ValueError(f"expected {' and '.join(names)} together, found one of them")
        return self


def _number_or_part(least: int) -> BeforeValidator:
    """Return a check of a number of images, or "from_source" for a part of the source itself."""

    def parse(value: object) -> object:
        if value != FROM_SOURCE and (type(value) is not int or not least <= value < 2**31):
            raise ValueError(f"expected {least} or more, or {FROM_SOURCE}, found {value!r}")
        return value

    return BeforeValidator(parse)


class Data(Section):
    """The images to use.

    `n_test` images neither train nor choose anything; where there are any, evaluations judge them.
    `image_size` None keeps the size that all images have. `follow_links` reads what links in a
    folder of images lead to. `skip_broken` leaves out images that cannot be read.
    """

    source: Source
    path: str
    arrays: Arrays | None = None
    image_size: Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)] | None
    n_images: Count | None
    n_val: Annotated[int | FromSource, _number_or_part(1)]
    n_test: Annotated[int | FromSource, _number_or_part(0)] = 0
    seed: Seed
    follow_links: bool = False
    skip_broken: bool = False

    @property
    def own_parts(self) -> tuple[Part, ...]:
        """The parts of the source's own split that are used, besides its training part."""
        return tuple(part for part in HELD_OUT if getattr(self, f"n_{part}") == FROM_SOURCE)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        for key, sources in ONLY_FOR.items():
            if getattr(self, key) and self.source not in sources:
                raise ValueError(
                    f"{key}: expected no such key for source {self.source} "
                    f"(only for {', '.join(sources)}), found one"
                )
        try:
            Path(self.path).expanduser()
        except RuntimeError as error:
            raise ValueError(
                f"path: expected ~ or a user of this machine after it, found {self.path}"
            ) from error
        if not self.path or any(map(self._overlaps, RESULTS)):
            raise ValueError(
                f"path: expected a file or folder apart from {', '.join(RESULTS)}, such as"
                f" data/raw, found {self.path!r}"
            )
        for part in self.own_parts:
            if self.source not in SPLIT:
                raise ValueError(
                    f"n_{part}: expected a number for source {self.source}, found {FROM_SOURCE}"
                )
            if self.n_images is not None:
                raise ValueError(
                    f"n_images: expected null with n_{part}: {FROM_SOURCE}, found {self.n_images}"
                )
        return self

    def _overlaps(self, result: str) -> bool:
        """Return whether the path holds a result of the pipeline, or is inside one."""
        own = Path(os.path.normpath(Path(self.path).expanduser().absolute()))
        other = Path(result).absolute()
        return other.is_relative_to(own) or own.is_relative_to(other)


class Store(Section):
    """The layout of an image set: `shard_rows` images in each HDF5 file."""

    shard_rows: Count


class PrepareParams(Section):
    """The sections that the stage `prepare` reads."""

    data: Data
    store: Store
