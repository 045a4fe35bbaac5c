"""Read the source `hdf5`: arrays in an HDF5 file of the user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.untrusted import hdf5, limits
from pipeline.prepare.params import Arrays, Part
from pipeline.prepare.sources import array_names, normaliser, pixels
from pipeline.prepare.sources.arrays import class_names_of, described
from pipeline.prepare.sources.common import Found, Stack

SPAN_ROWS = 1024  # rows that one read covers, at most
REMEDY = "save it again with h5py, as plain arrays"
DAMAGED = "not a readable HDF5 file; is it whole?"


def found(path: Path, names: Arrays | None, asked: Sequence[Part]) -> Found:
    """Return the images and labels of an HDF5 file.

    Images are read only when they are requested. Raises InputError for a file that is missing or
    unreadable, or that has no such datasets.
    """
    limits.regular(path, "set data.path to the HDF5 file of your images")
    there = _listed(path, names)
    chosen = array_names.choose(str(path), there, names, asked)
    named = array_names.class_names_in(there)
    pairs = [chosen.train, *chosen.held_out.values()]
    texts = [pair.labels for pair in pairs] + [name for name in [named] if name]
    hdf5.check_source(path, [*(pair.images for pair in pairs), *texts], REMEDY, texts)
    sha256 = files.sha256(path)
    with hdf5.reading(path, DAMAGED) as file:
        classes = (
            None if named is None else class_names_of(path, named, np.asarray(file[named][...]))
        )
        notes = array_names.left_out(chosen)
        turned = [file[pair.images] for pair in pairs if _is_turned(file[pair.images])]
        if turned:
            words = "images of MATLAB whose height and width were exchanged back"
            notes[words] = sum(len(dataset) for dataset in turned)
        train, *others = [
            Found(
                images=_stack(path, file, pair.images),
                labels=np.asarray(file[pair.labels][...]),
                class_names=classes,
                sha256=sha256,
                notes=notes,
            )
            for pair in pairs
        ]
    return normaliser.joined(path, train, dict(zip(chosen.held_out, others, strict=True)))


def _listed(path: Path, names: Arrays | None) -> dict[str, str]:
    """Return the datasets of a file with a description of each, by name.

    Names in `params.yaml` may lead through soft links and second hard links.
    """
    found = hdf5.contents(path, REMEDY)
    there = {name: described(shape, kind) for name, (shape, kind) in found.items()}
    wanted = [name for name in names.model_dump().values() if name] if names else []
    missing = [name for name in wanted if name not in there]
    if missing:
        hdf5.check_source(path, missing, REMEDY, missing)
        with hdf5.reading(path, DAMAGED) as file:
            for name in missing:
                if isinstance(dataset := file.get(name), h5py.Dataset):
                    there[name] = described(dataset.shape, str(dataset.dtype))
    return there


def _stack(path: Path, file: h5py.File, name: str) -> Stack:
    shape, is_turned = file[name].shape, _is_turned(file[name])

    def read(rows: NDArray[np.int64]) -> NDArray[Any]:
        with hdf5.reading(path, DAMAGED) as file:
            ends = np.flatnonzero(np.diff(rows // SPAN_ROWS)) + 1
            spans = [_span(file[name], part) for part in np.split(rows, ends)]
        images = np.concatenate(spans)
        return images.swapaxes(-2, -1) if is_turned else images

    if is_turned:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return Stack(shape=shape, dtype=file[name].dtype, read=read)


def _is_turned(dataset: h5py.Dataset) -> bool:
    """Return whether height and width of images are exchanged, because MATLAB wrote them.

    It stores the axes of (H, W, C, N) and (H, W, N) in reverse.
    """
    plain = dataset.ndim == 3 or (dataset.ndim == 4 and dataset.shape[1] in pixels.CHANNELS)
    return plain and "MATLAB_class" in dataset.attrs


def _span(dataset: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows, by one contiguous read.

    Selecting the rows inside h5py is many times slower.
    """
    first = int(rows.min())
    span: NDArray[Any] = dataset[first : int(rows.max()) + 1]
    return span[rows - first]
