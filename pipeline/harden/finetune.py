"""Stage `finetune@<model>`: fine-tune a model on a mix of clean and stored adversarial images.

The mix may contain adversarial sets that were made against other models (Tramèr et al., "Ensemble
Adversarial Training", ICLR 2018).
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline import attacks, networks
from pipeline.base import console, files, params, store
from pipeline.base.errors import InputError
from pipeline.base.values import CLEAN
from pipeline.cluster import training
from pipeline.harden import epoch_score, recipes, refreshed_sets
from pipeline.harden.params import Finetune, FinetuneParams
from pipeline.harden.refreshed_batches import RefreshedBatches
from pipeline.networks import device
from pipeline.train import checkpointed


def keys(model: str) -> list[str]:
    """Return the dotted keys that this stage reads of `params.yaml`, as declared in `dvc.yaml`."""
    shared = [
        "seed",
        "precision",
        "training",
        "mix",
        "attacks",
        "generate",
        "selection",
    ]
    return [*shared, f"finetuned.{model}"]


def finetune() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        model="checkpoint of the model to start from",
        adversarial="folder of the image sets made against that model",
        sources="folder with a folder of image sets for every other model",
        out="checkpoint of the fine-tuned model; its name is that under `finetuned`",
        history="CSV with a line for every epoch",
        refreshed="folder of the refreshed image sets; empty where none are refreshed",
    )
    return training.train(
        train,
        parser.parse_args(),
        inputs=["clean", "model", "adversarial", "sources"],
        outputs=["out", "history", "refreshed"],
    )


def train(args: Namespace) -> str:
    """Fine-tune a model, alone or as one of several workers."""
    name = args.out.stem
    settings, processor = params.load(params.FILE, FinetuneParams, keys(name)), device.choose()
    recipe = params.entry("finetuned", settings.finetuned, name)
    clean = store.clean(args.clean)
    first = networks.load(args.model, class_names=clean.class_names)
    parent = files.sha256(args.model)
    mixed_in = _mixed_sets(args.adversarial, args.sources, recipe, name)
    sources = _expected_sources(mixed_in, clean, parent, settings)
    sets = {CLEAN: clean, **mixed_in}
    network = first.network()
    batches = recipes.batches(recipe, sets, network, processor, args.out.parent)
    refreshed = batches if isinstance(batches, RefreshedBatches) else None
    earlier = first.provenance.get("attack_passes")
    stored = sum(map(attacks.passes, mixed_in.values()))
    judged = [CLEAN] if recipe.best_on == "robust" else list(recipe.mix)
    val = store.join([sets[part].load("val") for part in judged])
    return checkpointed.train(
        network,
        batches,
        epoch_score.validation(recipe, val, settings, processor),
        recipe,
        text=f"fine-tune {name}",
        out=args.out,
        history=args.history,
        architecture=first.architecture,
        class_names=clean.class_names,
        provenance={
            "parent.sha256": parent,
            **sources,
            **{f"{part}.digest": images.digest for part, images in sets.items()},
            "selection": settings.selection.model_dump_json(),
        },
        attack_passes=lambda epochs: (
            None  # nobody knows those of an adopted model
            if earlier is None
            else int(earlier) + stored + (refreshed.passes(epochs) if refreshed else 0)
        ),
        also_write=lambda checkpoint: _store_refreshed(
            args.refreshed, mixed_in, refreshed, checkpoint, args.out, processor
        ),
        watch=epoch_score.watch(len(val), settings.selection),
        keep=epoch_score.keep(recipe, len(val), settings.selection),
        device=processor,
    )


def _mixed_sets(own: Path, sources: Path, recipe: Finetune, name: str) -> dict[str, store.ImageSet]:
    """Return the adversarial sets that a recipe mixes, by their names in the mix.

    Raises InputError for a set that does not exist.
    """
    found = {}
    for part in recipe.mix:
        if part == CLEAN:
            continue
        source, attack = part.rpartition("-")[::2]
        path = sources / source / attack if source else own / attack
        if not path.is_dir():
            there = ", ".join(other.name for other in sorted(path.parent.glob("[!.]*/"))) or "none"
            raise InputError(
                f"{path}: no such image set, which finetuned.{name} mixes (found {there}); "
                "`dvc repro` makes it"
            )
        found[part] = store.ImageSet(path)
    return found


def _expected_sources(
    sets: Mapping[str, store.ImageSet],
    clean: store.ImageSet,
    parent: str,
    settings: FinetuneParams,
) -> dict[str, str]:
    """Return the SHA-256 of each source model, as its sets record it, by `source.<name>.sha256`.

    `parent` is the SHA-256 of the model that training starts from. Raises InputError for a set
    made with other params, from another clean set or against another model than the parent, and
    for sets of one source that were made against two models.
    """
    sources: dict[str, str] = {}
    for part, images in sets.items():
        source, attack = part.rpartition("-")[::2]
        recorded = str(images.attributes.get("model.sha256"))
        attacked = sources.setdefault(source, recorded) if source else parent
        spec = params.entry("attacks", settings.attacks, attack)
        identity = attacks.identity(clean, attacked, attack, spec, settings.generate)
        images.expect(
            {"kind": "adversarial", **identity},
            "made with other params, from another clean set or against another model",
        )
    return {f"source.{name}.sha256": sha256 for name, sha256 in sources.items()}


def _store_refreshed(
    folder: Path,
    sets: Mapping[str, store.ImageSet],
    batches: RefreshedBatches | None,
    checkpoint: networks.Checkpoint,
    out: Path,
    processor: torch.device,
) -> None:
    """Store the refreshed adversarial sets of the mix, if the recipe refreshes them.

    `out` is the file of `checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if batches is not None:
        network, sha256 = checkpoint.network().to(processor), files.sha256(out)
        for name, images in sets.items():
            refreshed_sets.store_refreshed(
                images, batches.working_copy(name), network, sha256, batches.refresh, folder / name
            )


if __name__ == "__main__":
    console.run(finetune)
