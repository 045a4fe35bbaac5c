"""Stage `export`: the chosen model -> the plain state_dict that is submitted."""

from pipeline import networks
from pipeline.base import console, files, params, store
from pipeline.export import card, submission
from pipeline.export.params import ExportParams

KEYS = ("export",)  # of params.yaml, as dvc.yaml declares them


def export_model() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        model="checkpoint to submit",
        metrics="JSON with the accuracies of that checkpoint",
        out="state_dict file",
        classes="CSV with the name of every class",
        card="model card in Markdown",
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, ExportParams, KEYS).export
    clean = store.ImageSet(args.clean)
    checkpoint = networks.load(args.model, class_names=clean.class_names)
    metrics = submission.judged(args.metrics, files.sha256(args.model))
    accuracy = submission.export(checkpoint, clean.load("val"), args.out)
    submission.write_classes(clean.class_names, args.classes)
    name, source = args.model.stem, str(clean.attributes["source"])
    written = card.text(name, checkpoint, metrics, source, clean.image_shape[2])
    files.write_bytes(args.card, written.encode())
    lines = submission.expectation(metrics)
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
