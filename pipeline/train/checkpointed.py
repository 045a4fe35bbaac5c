"""Trains a network, and writes the kept epoch as a checkpoint that says where it comes from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from pipeline import networks
from pipeline.base import console, files, unfinished
from pipeline.base.values import Section
from pipeline.networks.device import describe
from pipeline.networks.params import Model
from pipeline.networks.precision import precision_for, recorded
from pipeline.networks.scores import Validate
from pipeline.train import group, params
from pipeline.train.batches import Batches
from pipeline.train.history import Keep, Row, Watch, more_accurate
from pipeline.train.loop import SOFTER, Fit, fit

# Of the weights on the disk, at most. The unfinished work is there twice, with up to six copies
# each, and the checkpoint is there twice.
COPIES = 14
# Of the images that a training refreshes: the unfinished work is there twice, and at the end they
# become sets.
IMAGE_COPIES = 3


def train(
    network: nn.Module,
    batches: Batches,
    validate: Validate,
    settings: params.Training,
    *,
    text: str,
    out: Path,
    history: Path,
    architecture: str,
    class_names: Sequence[str],
    provenance: Mapping[str, str | int | float],
    attack_passes: Callable[[int], int | None] = lambda _: 0,
    also_write: Callable[[networks.Checkpoint], None] = lambda _: None,
    watch: Watch = lambda _: "",
    keep: Keep = more_accurate,
    device: torch.device,
) -> str:
    """Train, write the kept epoch's checkpoint and the history, and return what to print.

    `attack_passes` returns how many gradients of single images attacks have computed after so many
    epochs, with those before the training, or None if nobody knows. `also_write` writes what else
    the training makes. `watch` and `keep` are those of `loop.fit`. Every epoch prints a line and
    writes the history. The unfinished work is deleted last. Of several workers that train together,
    the first one writes and prints.
    """
    workers = group.current()
    origin = _origin(provenance, settings, device)
    part = unfinished.path_for(out, {**origin, "architecture": architecture})
    files.require_space(out.parent, _size(network, batches), text)
    told = _telling(text, settings.epochs, history, watch) if workers.is_first else watch
    with _missing_if_stopped(history):
        fitted = fit(
            network, batches, validate, settings, text=text, device=device, part=part, watch=told,
            keep=keep,
        )  # fmt: skip
    done = f"{out}: {_kept(fitted)}, on {_describe(workers, device)}"
    if not workers.is_first:
        return done
    checkpoint = networks.Checkpoint(
        architecture=architecture,
        class_names=list(class_names),
        state_dict=fitted.state_dict,
        provenance={**origin, **_outcome(fitted, attack_passes(len(fitted.history)))},
    )
    checkpoint.save(out)
    files.write_csv(history, fitted.history)
    also_write(checkpoint)
    part.unlink()
    return done


def first_weights(model: Model, sha256: str) -> dict[str, str]:
    """Return what identifies the weights that training starts from."""
    taken = [key for key in ("keep_head", "ignore_normalisation") if getattr(model, key)]
    return {
        "weights": model.weights or "none",
        "weights.sha256": sha256,
        **{f"weights.{key}": "true" for key in taken},  # a key that is left out changes no bytes
    }


def _kept(fitted: Fit) -> str:
    """Return in words which epoch of a training was kept."""
    return (
        f"epoch {fitted.best['epoch']} of {len(fitted.history)} kept, "
        f"validation accuracy {fitted.best['val_accuracy']:.4f}"
    )


def _describe(workers: group.Group, device: torch.device) -> str:
    each = describe(device)
    return each if workers.size == 1 else f"{workers.size} workers, each {each}"


def _telling(text: str, epochs: int, history: Path, watch: Watch) -> Watch:
    """Return a watch that also prints a line for every epoch, and writes the history so far."""

    def after_epoch(rows: Sequence[Row]) -> str:
        last = rows[-1]
        console.say(
            f"{text}: epoch {last['epoch']} of {epochs}: loss {last['train_loss']:.3f}, "
            f"validation accuracy {last['val_accuracy']:.4f}"
        )
        files.write_csv(history, rows)
        return watch(rows)

    return after_epoch


@contextmanager
def _missing_if_stopped(history: Path) -> Iterator[None]:
    """Delete the history of a training that does not end: `make repro` restores what is missing."""
    try:
        yield
    except BaseException:
        history.unlink(missing_ok=True)
        raise


def _outcome(fitted: Fit, passes: int | None) -> dict[str, str | int | float]:
    """Return what a checkpoint records of the training itself."""
    found: dict[str, str | int | float] = {
        "best.epoch": fitted.best["epoch"],
        "best.val_accuracy": fitted.best["val_accuracy"],
        "processor": ", then ".join(fitted.processors),
    }
    if passes is not None:
        found["attack_passes"] = passes
    if fitted.collapsed:
        found |= {"collapsed.epoch": fitted.collapsed, "collapsed.alpha_scale": SOFTER}
    return found


def _size(network: nn.Module, batches: Batches) -> int:
    """Return the bytes that the unfinished work and the results take."""
    weights: int = sum(tensor.nbytes for tensor in network.state_dict().values())
    images = sum(tensor.nbytes for tensor in batches.state.values())
    return COPIES * weights + IMAGE_COPIES * images


def _origin(
    provenance: Mapping[str, str | int | float], settings: params.Training, device: torch.device
) -> dict[str, str | int | float]:
    """Return all that decides the result of a training, as plain values."""
    return {
        **provenance,
        **{
            f"training.{key}": value if isinstance(value, str | int | float) else _plain(value)
            for key, value in settings
            if key in settings.model_fields_set  # a key that may be left out changes no bytes
        },
        "device": device.type,
        "precision": recorded(precision_for(settings.precision, device), device),
        # Alone, a process records no number.
        **({"workers": workers} if (workers := group.current().size) > 1 else {}),
        **{f"versions.{name}": version(name) for name in ("torch", "torchvision", "numpy")},
    }


def _plain(value: object) -> str:
    if isinstance(value, Section):
        value = value.model_dump(exclude_none=True, exclude_unset=True)
    return json.dumps(value)
