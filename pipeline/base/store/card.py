"""Write a set's `README.md`: what it holds, how it was made, and how to read it."""

from pipeline.base.store.blocks import SPLITS
from pipeline.base.store.image_set import ImageSet

NAME = "README.md"
CARD = """\
---
task_categories: [image-classification]
tags: [{tags}]
---
# {title}

{lead}

{rows:,} images of {width} x {height} pixels in {classes} classes: {parts}.{fooled}

| attribute | value |
|---|---|
{attributes}

Read it in Python, with this folder for FOLDER:

```python
from pathlib import Path
from pipeline.base.store import ImageSet
val = ImageSet(Path("FOLDER")).load("val")
```

`val.images` are uint8 (n, 3, H, W), and `val.labels` are int64 (n,). `manifest.json` holds
all attributes and the SHA-256 of every shard.
"""
TITLES = {
    "clean": ("Clean images", "The images that every other set was made from, and their split."),
    "adversarial": (
        "Adversarial images",
        "Every image of the clean set, attacked once against one model. Accuracy on them is "
        "transfer accuracy. It says nothing about an attacker of another model.",
    ),
    "refreshed": (
        "Refreshed adversarial images",
        "Stored adversarial images as they stood at the end of a training that attacked them "
        "further. Only training images were refreshed. Whoever is judged on them was trained on "
        "them.",
    ),
}


def text(found: ImageSet) -> str:
    """Return the card of a set. The same set gives the same text, wherever it is."""
    about = found.attributes
    split = found.column("split")
    title, lead = TITLES[str(about["kind"])]
    attack = str(about.get("attack", ""))
    counts = [
        f"{count:,} {name}"
        for name, number in SPLITS.items()
        if (count := int((split == number).sum()))
    ]
    fooled = ""
    if attack:
        share = found.column("fooled").mean()
        fooled = f" {share:.1%} of them fool the model that `model.sha256` names."
    _, height, width = found.image_shape
    return CARD.format(
        tags=", ".join(["adversarial-robustness", *([attack] if attack else [])]),
        title=f"{title}: {attack}" if attack else title,
        lead=lead,
        rows=len(found),
        width=width,
        height=height,
        classes=len(found.class_names),
        parts=", ".join(counts),
        fooled=fooled,
        attributes="\n".join(
            f"| {key} | {_cell(value)} |" for key, value in about.items() if key != "class_names"
        ),
    )


def _cell(value: object) -> str:
    """Return a value that stays in its cell and is shown as it is."""
    shown = str(value).replace("`", "'").replace("|", r"\|").replace("\n", " ")
    return f"`{shown}`" if shown else ""
