"""Check models by their tensors and by the sets that they were trained on.

Every check takes a project and yields rows.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import networks
from pipeline.audit.project import Project, Row, judged, matches
from pipeline.base import files, params, store
from pipeline.base.values import CLEAN
from pipeline.harden import epoch_score
from pipeline.networks.params import Model
from pipeline.train.history import Keep, kept_epoch, more_accurate


def trained_model(project: Project, path: str) -> Iterator[Row]:
    """Check that a checkpoint came from the sets and the model that its stage read.

    Also check that no held-out image is among the training rows.
    """
    entry, checkpoint = project.made(path), project.checkpoint(path)
    yield Row("model", f"SHA-256 {project.sha256(path)}", path, "ok")
    mix = project.settings.mix_of(Path(path).stem)
    stored = project.adversarial(entry.deps).items()
    sets = {CLEAN: project.clean, **{name: source for name, source in stored if name in mix}}
    origins = {
        f"{name}.digest": (source, project.images(source).digest) for name, source in sets.items()
    }
    for model in project.checkpoints(entry.deps):
        origins["parent.sha256"] = (model, project.sha256(model))
    for model in {project.attacked(source) for name, source in sets.items() if "-" in name}:
        origins[f"source.{Path(model).stem}.sha256"] = (model, project.sha256(model))
    for key, (source, value) in origins.items():
        yield matches(f"made from {source}", checkpoint.provenance.get(key), value, path)
    yield _pretrained(project, path, checkpoint)
    clean = project.images(project.clean)
    held_out = clean.column("ids")[clean.column("split") > 0]
    for name, source in sets.items():
        rows = project.images(source).training_column("ids")
        seen = np.intersect1d(held_out, rows)
        fault = (
            f"{len(seen)} held-out images among the training rows, such as id {seen[0]}"
            if len(seen)
            else ""
        )
        yield judged(
            f"training rows of {name}",
            fault,
            f"{len(rows)}, no held-out image",
            source,
        )
    yield _best_epoch(project, path, checkpoint)


def _pretrained(project: Project, path: str, checkpoint: networks.Checkpoint) -> Row:
    """Check that training began with the weights that params.yaml names."""
    settings, name, recorded = project.settings, Path(path).stem, checkpoint.provenance
    start = settings.online[name].start if name in settings.online else settings.model
    if name in settings.finetuned or not isinstance(start, Model):
        problem = "recorded weights of its own" if "weights" in recorded else ""
        return judged("weights", problem, "the parent's", path)
    wanted = start.weights or "none"
    if recorded.get("weights") != wanted:
        problem = f"recorded {recorded.get('weights')}, {params.FILE}: {wanted}"
        return judged("weights", problem, "", path)
    file, sha256 = networks.weights_file(start), str(recorded.get("weights.sha256", ""))
    if file is None:
        problem = f"recorded SHA-256 {sha256}, {params.FILE}: none" if sha256 else ""
        return judged("weights", problem, "none, from scratch", path)
    file = project.root / file
    if not file.is_file():
        missing = f"{file.name} is not here"
        return Row("weights", missing, path, "not comparable")
    return matches("weights", sha256, files.sha256(file), path)


def _best_epoch(project: Project, path: str, checkpoint: networks.Checkpoint) -> Row:
    """Check that the kept epoch is the one that the recipe's rule chooses from the history."""
    (history,) = [out for out in project.made(path).outs if Path(out).name == "history.csv"]
    rows = files.read_csv(project.root / history)
    epoch = int(checkpoint.provenance["best.epoch"])
    score = float(checkpoint.provenance["best.val_accuracy"])
    kept = kept_epoch(rows, _rule(project, Path(path).stem))
    agrees = epoch == kept["epoch"] and abs(score - kept["val_accuracy"]) < 1e-6
    problem = (
        f"recorded epoch {epoch} with {score:.6f}, history: epoch {kept['epoch']:.0f} with "
        f"{kept['val_accuracy']:.6f}"
    )
    return judged(
        "best epoch",
        "" if agrees else problem,
        f"{epoch}, validation accuracy {score:.4f}",
        f"{path}, {history}",
    )


def _rule(project: Project, model: str) -> Keep:
    """Return the rule that chooses the epoch of a model."""
    settings = project.settings
    recipe = settings.finetuned.get(model) or settings.online.get(model)
    if recipe is None:
        return more_accurate
    n_val = int((project.images(project.clean).column("split") == store.SPLITS["val"]).sum())
    return epoch_score.keep(recipe, n_val, settings.selection)
