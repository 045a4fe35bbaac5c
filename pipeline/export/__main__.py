"""Stage `export`: the chosen model -> the plain state_dict that is submitted."""

from pipeline import networks
from pipeline.base import console, files, params, store
from pipeline.export import card, ranking, submission
from pipeline.export.params import ExportParams

KEYS = ("export", "evaluate.models")  # of params.yaml, as dvc.yaml declares them


def export_model() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        models="folder of the checkpoints",
        metrics="folder with a JSON of the accuracies of each judged model",
        plots="folder with the grid of each judged model",
        out="state_dict file",
        classes="CSV with the name of every class",
        card="model card in Markdown",
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, ExportParams, KEYS)
    rule, judged = settings.export, settings.evaluate.models
    clean = store.clean(args.clean)
    found = {name: files.read_json(args.metrics / f"{name}.json", "sha256") for name in judged}
    ranked = ranking.rank(rule, found, ranking.read_grids(args.plots, judged))
    name = ranking.chosen(rule, ranked)
    path, metrics = args.models / f"{name}.safetensors", found[name]
    checkpoint = networks.load(path, class_names=clean.class_names)
    submission.expect_judged(args.metrics / f"{name}.json", metrics, files.sha256(path))
    accuracy = submission.export(checkpoint, clean.load(clean.judged), args.out)
    submission.write_classes(clean.class_names, args.classes)
    origin = card.origin(
        checkpoint,
        lambda parent: networks.load(
            args.models / f"{parent}.safetensors", class_names=clean.class_names
        ),
    )
    among = ranking.n_candidates(rule, ranked)
    written = card.text(name, checkpoint, origin, metrics, clean, among)
    files.write_bytes(args.card, written.encode())
    lines = submission.expectation(metrics)
    for line in ranking.table(rule, ranked):
        console.say(line)
    console.say("\n".join([f"a grader with these attacks is expected to find of {name}", *lines]))
    if accuracy <= rule.min_clean:
        console.say(f"warning: {path}: {low(accuracy, clean.judged, rule.min_clean)}")
    return (
        f"{args.out}: a stock {checkpoint.architecture} for {len(clean.class_names)} classes, "
        f"SHA-256 {files.sha256(args.out)}"
    )


def low(accuracy: float, judged: str, floor: float) -> str:
    """Return what a clean accuracy that is not above the floor means."""
    images = card.JUDGED[judged]
    return (
        f"clean accuracy {accuracy:.4f} on {images} is not above export.min_clean ({floor}); "
        "a grader with that limit would refuse the file"
    )


if __name__ == "__main__":
    console.run(export_model)
