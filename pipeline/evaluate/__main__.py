"""Stage `evaluate@<model>`: judge a model, and check whether the result can be believed.

It reads the model, the clean image set and stored adversarial ones.
"""

from importlib.metadata import version

from pipeline import attacks, networks
from pipeline.attacks.params import expect_classes
from pipeline.base import console, files, params, store
from pipeline.base.errors import InputError
from pipeline.cluster.opened import opened
from pipeline.evaluate import judgement, pictures, sweeps, table
from pipeline.evaluate.params import EvaluateParams

JUDGING = ("curves", "ensemble", "grid", "n_eval", "threats")
# The keys of params.yaml, as dvc.yaml declares them.
KEYS = ("seed", *(f"evaluate.{key}" for key in JUDGING))


def evaluate() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        model="checkpoint of the model to judge",
        stored="folder of the adversarial image sets made against one model",
        metrics="JSON with the accuracies and the checks",
        plots="folder for confusion.csv, grid.csv, curves.csv and pictures of them",
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, EvaluateParams, KEYS).evaluate
    clean = store.clean(args.clean)
    expect_classes(
        {f"evaluate.threats.{name}": threat for name, threat in settings.threats.items()},
        len(clean.class_names),
    )
    checkpoint = networks.load(args.model, class_names=clean.class_names)
    sha256 = files.sha256(args.model)
    stored = [store.ImageSet(path) for path in store.paths_below(args.stored)]
    if not stored:
        raise InputError(f"{args.stored}: expected stored image sets, found none")
    with opened() as workers:
        network = checkpoint.network().to(workers.device)
        found = judgement.judge(network, clean, stored, sha256, settings, workers)
    about = {
        "sha256": sha256,
        "device": workers.described,
        "processor": workers.processors,
        **attacks.versions(),
        **{f"versions.{name}": version(name) for name in ("scipy", "matplotlib")},
        "attack_passes": checkpoint.provenance.get("attack_passes"),
    }
    files.write_json(args.metrics, {**about, **found.metrics})
    files.write_csv(args.plots / "confusion.csv", found.confusion)
    files.write_csv(args.plots / "grid.csv", found.grid, sweeps.GRID_COLUMNS)
    files.write_csv(args.plots / "curves.csv", found.curves, sweeps.CURVE_COLUMNS)
    threat = settings.curves.threat
    pictures.draw(args.plots, args.model.stem, found.grid, found.curves, threat)
    console.say(table.checks(found.metrics["diagnostics"]))
    return (
        f"{args.metrics}: {len(settings.threats)} fresh attacks on {args.model},"
        f" on {workers.described}"
    )


if __name__ == "__main__":
    console.run(evaluate)
