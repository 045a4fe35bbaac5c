"""Stage `adopt@<model>`: a file of tensors that was made elsewhere -> a model like the others."""

from pipeline.adopt import adoption
from pipeline.adopt.params import AdoptParams
from pipeline.base import console, files, params, store


def keys(model: str) -> list[str]:
    """Return the dotted key that this stage reads of `params.yaml`, as declared in `dvc.yaml`."""
    return [f"adopted.{model}"]


def adopt() -> str:
    parser = console.path_arguments(
        __doc__,
        clean="folder of the clean image set",
        file="file of the model's tensors",
        out="checkpoint of the model; its name is that under `adopted`",
    )
    args = parser.parse_args()

    name = args.out.stem
    settings = params.load(params.FILE, AdoptParams, keys(name))
    recipe = params.entry("adopted", settings.adopted, name)
    clean = store.clean(args.clean)
    checkpoint = adoption.adopted(recipe, args.file, clean.class_names, f"adopted.{name}.file")
    checkpoint.save(args.out)
    return (
        f"{args.out}: a {checkpoint.architecture} whose {len(clean.class_names)} outputs are taken "
        f"to be the classes {clean.class_names[0]} to {clean.class_names[-1]} in their order, "
        f"SHA-256 {files.sha256(args.out)}"
    )


if __name__ == "__main__":
    console.run(adopt)
