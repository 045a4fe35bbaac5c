"""Stage `evaluate@<model>`: a model, the clean image set and stored adversarial ones -> its clean, transfer and robust accuracy."""

import argparse
from pathlib import Path

from pipeline import console, device, evaluation, files, networks, params, store


def evaluate() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True, help="folder of the clean image set")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the model to judge")
    parser.add_argument("--stored", type=Path, required=True, nargs="+", help="folders of stored adversarial image sets")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON with the accuracies")
    parser.add_argument("--confusion", type=Path, required=True, help="CSV with the actual and the predicted class of every image")
    args = parser.parse_args()

    settings, processor = params.load(params.FILE), device.choose()
    clean = store.ImageSet(args.clean)
    checkpoint = networks.load(args.model, architecture=settings.architecture_of(args.model.stem), class_names=clean.class_names)
    sha256, stored = files.sha256(args.model), [store.ImageSet(path) for path in args.stored]
    results, confusion = evaluation.judge(checkpoint.network().to(processor), clean, stored, sha256, settings.evaluate)
    files.write_json(args.metrics, {"sha256": sha256, "device": device.describe(processor), **results})
    files.write_csv(args.confusion, confusion)
    return f"{args.metrics}: {len(settings.evaluate.threats)} fresh attacks on {args.model}, on {device.describe(processor)}"


if __name__ == "__main__":
    console.run(evaluate)
