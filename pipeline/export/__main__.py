"""Stage `export`: the chosen model -> the plain state_dict that is submitted."""

import argparse
from pathlib import Path

from pipeline import networks
from pipeline.base import console, files, params, store
from pipeline.export import submission
from pipeline.export.params import ExportParams

KEYS = ("export",)  # of params.yaml, as dvc.yaml declares them


def export_model() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=Path, required=True, help="folder of the clean image set")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint to hand in")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="JSON with the accuracies of that checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="state_dict file")
    parser.add_argument(
        "--classes", type=Path, required=True, help="CSV with the name of every class"
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, ExportParams, KEYS).export
    clean = store.ImageSet(args.clean)
    checkpoint = networks.load(args.model, class_names=clean.class_names)
    lines = submission.expectation(args.metrics, files.sha256(args.model))
    accuracy = submission.export(checkpoint, clean.load("val"), args.out)
    submission.write_classes(clean.class_names, args.classes)
    console.say("\n".join(["a grader with these attacks is expected to find", *lines]))
    if accuracy <= settings.min_clean:
        console.say(
            f"warning: {args.model}: clean validation accuracy {accuracy:.4f} "
            f"is not above export.min_clean ({settings.min_clean}); "
            "a grader with that limit would refuse the file"
        )
    return (
        f"{args.out}: a stock {checkpoint.architecture} for {len(clean.class_names)} classes, "
        f"SHA-256 {files.sha256(args.out)}"
    )


if __name__ == "__main__":
    console.run(export_model)
