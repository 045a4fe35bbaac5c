"""Stage `prepare`: a source of labelled images -> the clean image set."""

import argparse
from pathlib import Path

import numpy as np

from pipeline import console, params, preparation, sources, store


def prepare() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the clean image set")
    args = parser.parse_args()

    settings = params.load(params.FILE)
    source = sources.open_source(settings.data)
    clean = preparation.prepare(source, settings.data, settings.store, args.out)
    per_class = np.bincount(clean.column("labels")[clean.column("split") == store.SPLITS["train"]])
    return (
        f"{args.out}: {len(clean)} images, {len(clean) - settings.data.n_val} to train and {settings.data.n_val} to validate, "
        f"{len(per_class)} classes with {per_class.min()} to {per_class.max()} training images"
    )


if __name__ == "__main__":
    console.run(prepare)
