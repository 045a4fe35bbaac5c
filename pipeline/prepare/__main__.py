"""Stage `prepare`: a source of labelled images -> the clean image set."""

from collections.abc import Iterator

import numpy as np

from pipeline.base import console, params, store
from pipeline.prepare import preparation, sources
from pipeline.prepare.params import PrepareParams
from pipeline.prepare.sources.common import numbered

SHOWN_CLASSES = 20
KEYS = ("seed", "data", "store")  # of params.yaml, as dvc.yaml declares them


def prepare() -> str:
    parser = console.path_arguments(
        __doc__,
        out="folder of the clean image set",
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, PrepareParams, KEYS)
    source = sources.open_source(settings.data)
    for line in told(source):
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


def told(source: sources.Source) -> Iterator[str]:
    """Yield what the source did to the images, and the number of each class that has a name."""
    for words, count in source.notes.items():
        yield f"{count:,} {words}"
    names = [f"{number} = {name[:40]}" for number, name in enumerate(source.class_names)]
    if source.class_names != numbered(len(names)):
        shown = (
            names if len(names) <= SHOWN_CLASSES else [*names[: SHOWN_CLASSES - 1], "…", names[-1]]
        )
        yield f"classes {', '.join(shown)}"


if __name__ == "__main__":
    console.run(prepare)
