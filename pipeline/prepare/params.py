"""Define the sections `data` and `store` of `params.yaml`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.values import Count, Section, Seed

MIN_SIZE, MAX_SIZE = 8, 1024  # pixels a side
FROM_SOURCE = "from_source"
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

    `val_images` and `val_labels` are those of the source's own validation part.
    """

    images: str
    labels: str
    val_images: str | None = None
    val_labels: str | None = None

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.val_images is None) != (self.val_labels is None):
            raise ValueError("expected val_images and val_labels together, found one of them")
        return self


def parse_n_val(value: object) -> object:
    """Return the number of validation images, or "from_source" for the source's own split."""
    if value != FROM_SOURCE and (type(value) is not int or not 1 <= value < 2**31):
        raise ValueError(f"expected 1 or more, or {FROM_SOURCE}, found {value!r}")
    return value


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
    n_val: Annotated[int | str, BeforeValidator(parse_n_val)]
    n_test: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Seed
    follow_links: bool = False
    skip_broken: bool = False

    @property
    def own_split(self) -> bool:
        """Whether the source's own split is used."""
        return self.n_val == FROM_SOURCE

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        for key, sources in ONLY_FOR.items():
            if getattr(self, key) and self.source not in sources:
                raise ValueError(
                    f"{key}: expected no such key for source {self.source} "
                    f"(only for {', '.join(sources)}), found one"
                )
        if self.own_split and (self.source not in SPLIT or self.n_images is not None):
            raise ValueError(
                f"n_val: expected a number for source {self.source}, found {FROM_SOURCE}"
                if self.source not in SPLIT
                else f"n_images: expected null with n_val: {FROM_SOURCE}, found {self.n_images}"
            )
        return self


class Store(Section):
    """The layout of an image set: `shard_rows` images in each HDF5 file."""

    shard_rows: Count


class PrepareParams(Section):
    """The sections that the stage `prepare` reads."""

    data: Data
    store: Store
