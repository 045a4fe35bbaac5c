"""Write the model card of the submitted file, in the form that Hugging Face reads."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from ruamel.yaml import YAML

from pipeline.base.errors import InputError
from pipeline.base.store import ImageSet
from pipeline.base.values import CLEAN
from pipeline.export import submission
from pipeline.networks import Checkpoint

CARD = """\
---
{head}---
# {name}: a {architecture} for {n_classes} classes

{lead}

## How it was judged

Accuracy in %, on {judged} Robust accuracy is measured under
white-box attacks that ran freshly against this model itself.

| | accuracy | 95 % interval | images |
|---|---|---|---|
{results}

Evidence for the robust accuracy: **{evidence}**. It says how well the robust accuracy was tested,
not how robust the model is.

## How it was trained

| | |
|---|---|
{training}

## Limits

- It was attacked within L-infinity balls only, at the eps above. Other attacks and larger eps may
  fool it more often.
- It was judged on images of one source: `{source}`. Others may give other figures.
- Its accuracy differs from class to class.

## How to load it

```python
import torch, torchvision
model = torchvision.models.{architecture}(num_classes={n_classes})
model.load_state_dict(torch.load("submission.pt", weights_only=True))
model.eval()  # takes images (B, 3, {size}, {size}) in [0, 1], not normalised
```

`submission.classes.csv` names the class of each output.
"""


JUDGED = {"test": "test images", "val": "validation images"}


def text(
    name: str,
    checkpoint: Checkpoint,
    origin: Checkpoint,
    metrics: Mapping[str, Any],
    clean: ImageSet,
    among: int,
) -> str:
    """Return the card of a model.

    `origin` is the model that its trainings began with, or the model itself. `metrics` are those of
    its evaluation, and `clean` are its images.
    `among` is the number of models that the judged images chose it from; it is 1 if they did not.
    """
    results, source = submission.named(metrics), str(clean.attributes["source"])
    return CARD.format(
        head=_head(name, checkpoint, results, source),
        name=name,
        architecture=checkpoint.architecture,
        n_classes=len(checkpoint.class_names),
        lead=_lead(name, checkpoint.provenance),
        judged=_judged(metrics, among, checkpoint, origin),
        results="\n".join(_result(*result) for result in results.items()),
        evidence=metrics["diagnostics"]["verdict"],
        training="\n".join(
            f"| {key} | `{value}` |" for key, value in checkpoint.provenance.items() if value != ""
        ),
        source=source,
        size=clean.image_shape[2],
    )


def origin(checkpoint: Checkpoint, load: Callable[[str], Checkpoint]) -> Checkpoint:
    """Return the model that a model's trainings began with, or the model itself.

    `load` returns a model by its name. Raises InputError for one that began with itself, as after
    files were swapped.
    """
    seen: set[str] = set()
    while parent := _parent(checkpoint.provenance):
        if parent in seen:
            raise InputError(f"models: {parent} is recorded as trained from itself")
        seen.add(parent)
        checkpoint = load(parent)
    return checkpoint


def _parent(provenance: Mapping[str, Any]) -> str:
    """Return the model that a training began with, or nothing if it began with other weights."""
    begins_clean = provenance.get("training.start") == CLEAN
    return CLEAN if begins_clean else str(provenance.get("training.of", ""))


def _head(
    name: str, checkpoint: Checkpoint, results: Mapping[str, Mapping[str, Any]], source: str
) -> str:
    """Return the card's metadata as YAML."""
    metrics = [
        {"type": "accuracy", "name": f"{key} accuracy", "value": result["accuracy"]}
        for key, result in results.items()
    ]
    evaluated = {
        "task": {"type": "image-classification"},
        "dataset": {"name": source, "type": source},
        "metrics": metrics,
    }
    content = {
        "pipeline_tag": "image-classification",
        "library_name": "pytorch",
        "tags": ["adversarial-robustness", checkpoint.architecture],
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [evaluated]}],
    }
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump(content, text)
    return text.getvalue()


def _judged(
    metrics: Mapping[str, Any], among: int, checkpoint: Checkpoint, origin: Checkpoint
) -> str:
    """Return which images judged a model, what they chose, and whether they may have trained it."""
    part = metrics["data_set"]["judged"]
    is_adopted = "file.sha256" in checkpoint.provenance
    chosen = ["the kept epoch"] if part == "val" and not is_adopted else []
    chosen += [f"this model among {among}"] if among > 1 else []
    use = f"which also chose {' and '.join(chosen)}" if chosen else "which chose nothing"
    images, unknown = f"{JUDGED[part]}, {use}.", "elsewhere; whether on these images is not known."
    trained = "This model" if checkpoint is origin else "The model that it starts from"
    if "file.sha256" in origin.provenance:
        return f"{images} {trained} was trained {unknown}"
    if "/" in (weights := str(origin.provenance.get("weights", ""))):
        return f"{images} {trained} begins with `{weights}`, which was trained {unknown}"
    if copies := metrics["diagnostics"]["checks"]["judged_images_not_held_out"]["value"]:
        return f"{images} {copies:.1%} of them are training images too, pixel by pixel."
    return f"{images} No training step used them."


def _lead(name: str, provenance: Mapping[str, Any]) -> str:
    passes = provenance.get("attack_passes")
    trained = f"`{name}`"
    if "training.of" in provenance:
        trained += f", fine-tuned from `{provenance['training.of']}` on clean and attacked images"
    spent = "" if passes is None else f" Attacks took {passes:,} gradients of images to train it."
    return f"{trained}. A plain `state_dict` of a stock torchvision network.{spent}"


def _result(name: str, result: Mapping[str, Any]) -> str:
    low, high = 100 * result["low95"], 100 * result["high95"]
    accuracy = f"{100 * result['accuracy']:.1f}"
    return f"| {name} | {accuracy} | {low:.1f} to {high:.1f} | {result['n']:,} |"
