"""Choose images to look at, by rule, and show what attacks did to them."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline import networks
from pipeline.audit.project import Project
from pipeline.base import store
from pipeline.figures import in_pixels
from pipeline.report.parts import data_url
from pipeline.report.results import Results, path_of

Images = NDArray[np.uint8]
SIDE = 64  # pixels; of larger images, the middle is shown
BUDGET = 1_200_000  # bytes of pictures on the page, at most
CLASSES = 10  # that are shown, at most
REFRESHED = 3  # classes of which a refreshed training image is shown, at most
SEARCHED = 1000  # images of a split among which the shown ones are chosen, at most
PIXEL = 4  # bytes that a pixel takes on the page at most: three colours in base64


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one model says of an image. Confidence is its softmax probability of that class."""

    class_name: str
    confidence: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Version:
    """One state of an image: its name, its pixels, and every model's opinion of it.

    The difference from the clean image is multiplied by `factor` and added to grey.
    """

    name: str
    picture: str
    difference: str
    factor: int
    opinions: list[Opinion]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image in all its versions."""

    rule: str
    class_name: str
    image_id: int
    versions: list[Version]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stored set: its name, the chosen split's images, and its eps in units of pixels."""

    name: str
    images: Images
    eps: float


@dataclass(frozen=True)
class Gallery:
    """Cards of validation images and of refreshed training images, with the models' names."""

    models: list[str]
    attacked: str
    submitted: str
    n_searched: int
    n_classes: int
    side: int
    validation: list[Card]
    refreshed: list[Card]


def gallery(results: Results) -> Gallery:
    """Return the images to show of every class, as far as the page has room.

    Of each class, the first validation image is shown that the submitted model gets right in every
    stored version, and for each stored attack the first one that it gets wrong although it gets the
    clean image right. Of the refreshed training images, the first of each class is shown.
    """
    project = results.project
    stored = project.settings.evaluate.stored
    folder = f"data/adversarial/{stored}"
    sets = {name: f"{folder}/{name}" for name in project.settings.attacks}
    clean, sources = _open(project, sets, project.images(project.clean).judged)
    refreshed = _refreshed_sets(project)
    room = BUDGET // (min(SIDE, clean.images.shape[2]) ** 2 * PIXEL)
    n_classes, n_refreshed = _shared_out(room, len(project.class_names), len(sets), len(refreshed))
    asked = {model: project.network(path_of(model)) for model in results.models}
    chosen = _chosen(asked[results.submitted], clean, sources, n_classes)
    show = partial(_card, project, asked)
    return Gallery(
        models=results.models,
        attacked=stored,
        submitted=results.submitted,
        n_searched=len(clean),
        n_classes=n_classes,
        side=min(SIDE, clean.images.shape[2]),
        validation=[show(clean, sources, row, rule) for row, rule in chosen],
        refreshed=list(_refreshed(project, {**sets, **refreshed}, asked, n_refreshed)),
    )


def _shared_out(room: int, n_classes: int, n_sets: int, n_refreshed: int) -> tuple[int, int]:
    """Return of how many classes to show validation images, and refreshed training images.

    All together are at most `room` pictures, unless one class of each kind has more already.
    """
    n_classes = min(CLASSES, n_classes)
    of_class = (1 + n_sets) * (1 + 2 * n_sets)
    of_refreshed = 1 + 2 * (n_sets + n_refreshed)
    shown = max(1, min(REFRESHED, n_classes, room // (of_class + of_refreshed)))
    if not n_refreshed:
        shown = 0
    return max(1, min(n_classes, (room - shown * of_refreshed) // of_class)), shown


def _refreshed_sets(project: Project) -> dict[str, str]:
    """Return the paths of the sets that trainings refreshed, by their names on the page."""
    return {
        f"{Path(path).name}, refreshed by {model}": path
        for model in project.settings.finetuned
        for path in project.below(f"data/refreshed/{model}")
    }


def _open(
    project: Project, sets: Mapping[str, str], split: store.Split
) -> tuple[store.Block, list[Source]]:
    """Return the first images of a split of the clean set, and the same of stored sets."""
    sources = [
        Source(
            name=name,
            images=_first(project.images(path), split).images,
            eps=float(project.images(path).attributes["eps.stored"]),
        )
        for name, path in sets.items()
    ]
    return _first(project.images(project.clean), split), sources


def _first(images: store.ImageSet, split: store.Split) -> store.Block:
    """Return the first SEARCHED rows of a split, without reading more shards than they need."""
    found: list[store.Block] = []
    for block in images.blocks():
        found.append(block.select(block.split == store.SPLITS[split]))
        if sum(map(len, found)) >= SEARCHED:
            break
    rows = store.join(found)
    return rows.select(np.arange(len(rows)) < SEARCHED)


def _chosen(
    network: nn.Module, clean: store.Block, sources: Sequence[Source], n_classes: int
) -> Iterator[tuple[int, str]]:
    """Yield the rows to show, class by class, and the rules that chose each."""
    right = networks.predict(network, clean.images) == clean.labels
    after = {
        source.name: networks.predict(network, source.images) == clean.labels for source in sources
    }
    rules = {"withstands every stored attack": np.logical_and.reduce([right, *after.values()])}
    rules |= {f"falls to {name}": right & ~stands for name, stands in after.items()}
    for label in range(n_classes):
        shown: dict[int, list[str]] = {}
        for rule, found in rules.items():
            for row in islice(np.flatnonzero(found & (clean.labels == label)), 1):
                shown.setdefault(int(row), []).append(rule)
        yield from ((row, ", ".join(found)) for row, found in shown.items())


def _refreshed(
    project: Project, sets: Mapping[str, str], asked: Mapping[str, nn.Module], n_classes: int
) -> Iterator[Card]:
    """Yield the first training image of every class, with its stored and refreshed versions."""
    if not n_classes:
        return
    clean, sources = _open(project, sets, "train")
    for label in range(n_classes):
        for row in islice(np.flatnonzero(clean.labels == label), 1):
            yield _card(project, asked, clean, sources, int(row), "training image")


def _card(
    project: Project,
    asked: Mapping[str, nn.Module],
    clean: store.Block,
    sources: Sequence[Source],
    row: int,
    rule: str,
) -> Card:
    """Return one image, its stored versions, and what every model says of them."""
    images = np.stack([clean.images[row], *(source.images[row] for source in sources)])
    opinions = [
        _opinions(network, images, int(clean.labels[row]), project.class_names)
        for network in asked.values()
    ]
    shown = _middle(images)
    versions = [
        _version(name, image, shown[0], eps, said)
        for (name, eps), image, *said in zip(
            [("clean", 0.0), *((source.name, source.eps) for source in sources)],
            shown,
            *opinions,
            strict=True,
        )
    ]
    return Card(
        rule=rule,
        class_name=project.class_names[clean.labels[row]],
        image_id=int(clean.ids[row]),
        versions=versions,
    )


def _version(
    name: str, image: Images, clean: Images, eps: float, opinions: list[Opinion]
) -> Version:
    """Return an image (3, H, W), with its difference from the clean one as grey plus a multiple."""
    factor = int(127 // max(1, round(eps * 255))) if eps else 0
    moved = 128 + factor * (image.astype(np.int16) - clean.astype(np.int16))
    return Version(
        name=f"{name}, eps {in_pixels(eps)}" if eps else name,
        picture=_png(image),
        difference=_png(np.clip(moved, 0, 255).astype(np.uint8)) if eps else "",
        factor=factor,
        opinions=opinions,
    )


def _opinions(
    network: nn.Module, images: Images, label: int, class_names: Sequence[str]
) -> list[Opinion]:
    """Return a model's class for each image (n, 3, H, W), its confidence, and if it is right."""
    outputs = networks.outputs(network, images).softmax(1)
    return [
        Opinion(
            class_name=class_names[guess], confidence=float(share[guess]), is_right=guess == label
        )
        for share, guess in zip(outputs, outputs.argmax(1).tolist(), strict=True)
    ]


def _middle(images: Images) -> Images:
    """Return images (n, 3, H, W) cut to the SIDE x SIDE pixels in their middle, if larger."""
    height, width = images.shape[2:]
    top, left = (max(0, (size - SIDE) // 2) for size in (height, width))
    return images[:, :, top : top + SIDE, left : left + SIDE]


def _png(image: Images) -> str:
    """Return an image (3, H, W) as the URL of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    return data_url("image/png", buffer.getvalue())
