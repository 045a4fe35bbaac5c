"""Stage `train_clean`: the clean image set -> the clean model."""

from argparse import Namespace

from pipeline import networks
from pipeline.base import console, params, store
from pipeline.base.values import CLEAN
from pipeline.cluster import training
from pipeline.networks import device, scores
from pipeline.train import augmentation, checkpointed, group, mixing
from pipeline.train.params import TrainParams

KEYS = ("seed", "precision", "model", "training", "clean")  # of params.yaml, as in dvc.yaml


def train_clean() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        out="checkpoint of the clean model",
        history="CSV with a line for every epoch",
    )
    args, settings = parser.parse_args(), params.load(params.FILE, TrainParams, KEYS)
    return training.train(
        train,
        args,
        inputs=["clean"],
        start=settings.model,
        outputs=["out", "history"],
    )


def train(args: Namespace) -> str:
    """Train the clean model, alone or as one of several workers."""
    settings, processor = params.load(params.FILE, TrainParams, KEYS), device.choose()
    clean = store.clean(args.clean)
    val = clean.load("val")
    pretrained = networks.pretrained_weights(settings.model)
    network = networks.build(
        settings.model, len(clean.class_names), settings.clean.seed, pretrained
    )
    return checkpointed.train(
        network,
        augmentation.AugmentedBatches(
            mixing.training_batches({CLEAN: clean}, settings.clean, processor),
            settings.clean.augment,
            settings.clean.seed,
        ),
        group.current().validation(val, scores.accuracy_on),
        settings.clean,
        text="train the clean model",
        out=args.out,
        history=args.history,
        architecture=settings.model.architecture,
        class_names=clean.class_names,
        provenance={
            "clean.digest": clean.digest,
            **checkpointed.first_weights(settings.model, pretrained.sha256),
        },
        device=processor,
    )


if __name__ == "__main__":
    console.run(train_clean)
