"""Define the sections `data` and `store` of `params.yaml`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.values import Count, Section, Seed


class Hdf5(Section):
    """The names of the datasets in a user's own HDF5 file."""

    images: str
    labels: str


class Data(Section):
    source: Literal[
        "digits", "npz", "hdf5", "task_dataset", "image_folder", "cifar10", "cifar100", "svhn"
    ]
    path: str
    hdf5: Hdf5 | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)]
    n_images: Count | None
    n_val: Count
    seed: Seed

    @model_validator(mode="after")
    def _check_hdf5(self) -> Self:
        if (self.hdf5 is None) == (self.source == "hdf5"):
            wanted = (
                "{images: …, labels: …}, the names of the datasets"
                if self.hdf5 is None
                else f"no such key for source {self.source}"
            )
            raise ValueError(
                f"hdf5: expected {wanted}, found {'none' if self.hdf5 is None else 'one'}"
            )
        return self


class Store(Section):
    """The layout of an image set: `shard_rows` images in each HDF5 file."""

    shard_rows: Count


class PrepareParams(Section):
    """The sections that the stage `prepare` reads."""

    data: Data
    store: Store
