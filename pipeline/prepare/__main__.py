"""Stage `prepare`: a source of labelled images -> the clean image set."""

import numpy as np

from pipeline.base import console, params, store
from pipeline.prepare import preparation, sources
from pipeline.prepare.params import PrepareParams

KEYS = ("seed", "data", "store")  # of params.yaml, as dvc.yaml declares them


def prepare() -> str:
    parser = console.path_arguments(
        __doc__,
        out="folder of the clean image set",
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, PrepareParams, KEYS)
    source = sources.open_source(settings.data)
    for line in preparation.told(source):
        console.say(f"{settings.data.path}: {line}")
    clean = preparation.prepare(source, settings.data, settings.store, args.out)
    split = clean.column("split")
    counts = {name: int((split == number).sum()) for name, number in store.SPLITS.items()}
    per_class = np.bincount(clean.column("labels")[split == store.SPLITS["train"]])
    test = f", {counts['test']} to test" if counts["test"] else ""
    return (
        f"{args.out}: {len(clean)} images, {counts['train']} to train and "
        f"{counts['val']} to validate{test}, "
        f"{len(per_class)} classes with {per_class.min()} to {per_class.max()} training images"
    )


if __name__ == "__main__":
    console.run(prepare)
