"""Stage `generate@<model>-<attack>`: attack the clean image set and store the result."""

from pipeline import networks
from pipeline.attacks.params import expect_classes
from pipeline.base import console, files, params, store
from pipeline.cluster.opened import opened
from pipeline.generate import generation
from pipeline.generate.params import GenerateParams


def keys(attack: str) -> list[str]:
    """Return the dotted keys of `params.yaml` that this stage reads.

    They are the ones that `dvc.yaml` declares.
    """
    return ["seed", "precision", "generate", f"attacks.{attack}"]


def generate() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        model="checkpoint of the model to attack",
        out="folder of the adversarial image set",
    )
    parser.add_argument(
        "--attack", required=True, help="name of the attack under `attacks` in params.yaml"
    )
    args = parser.parse_args()

    settings = params.load(params.FILE, GenerateParams, keys(args.attack))
    attack = params.entry("attacks", settings.attacks, args.attack)
    clean = store.clean(args.clean)
    expect_classes({f"attacks.{args.attack}": attack}, len(clean.class_names))
    checkpoint = networks.load(args.model, class_names=clean.class_names)
    with opened() as workers:
        attacked = generation.generate(
            clean,
            checkpoint.network(),
            files.sha256(args.model),
            attack,
            settings.generate,
            name=args.attack,
            out=args.out,
            workers=workers,
        )
    fooled = attacked.column("fooled").mean()
    return (
        f"{args.out}: {len(attacked)} images, {fooled:.1%} of them fool {args.model},"
        f" on {workers.described}"
    )


if __name__ == "__main__":
    console.run(generate)
