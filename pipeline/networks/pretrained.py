"""Read the weights to start from: torchvision's, by name, or a state_dict in a file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from pipeline.base import console, files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.base.untrusted import torch_files as untrusted
from pipeline.networks import downloads, foreign, normalisation, params, resnet, torch_files
from pipeline.networks.foreign import Copy, StateDict, shown
from pipeline.networks.resnet import SCRATCH, Pretrained
from pipeline.networks.torch_files import reason

MAX_STEPS = 1_000_000  # of a pickle; that of the largest ResNet takes 10,000
MAX_PARTS = 10  # state_dicts that are compared for an error
UNSAFE = "not a file of tensors that can be read safely"
HEAD = ("fc.weight", "fc.bias")


def pretrained_weights(model: params.Model, where: str = "model") -> Pretrained:
    """Return the tensors that `model.weights` names.

    They are torchvision's ImageNet weights, a state_dict in a file, or none. torchvision's are
    downloaded once to torch's hub folder. The hash in the file's name is compared on every use.
    `where` is the dotted key of `model`. Raises InputError for weights that cannot be read whole,
    that belong to another network or that are not finite. Never starts from scratch instead.
    """
    key, path = f"{where}.weights", downloads.weights_file(model)
    if path is None:
        return SCRATCH
    if model.file is None:
        downloads.fetch(downloads.url(model), path, key)
    tensors = read_network(
        path,
        model.architecture,
        key,
        keep_head=model.keep_head,
        ignore_normalisation=model.ignore_normalisation,
        remedy=f"write {where}.ignore_normalisation: true to take the weights as they are, as is "
        "done with torchvision's own",
    )
    return Pretrained(state_dict=tensors, sha256=files.sha256(path))


def expect_weights(model: params.Model, where: str) -> None:
    """Check the weights that `pretrained_weights` will read.

    If torchvision's weights are not downloaded yet, say from where they will be. Raises
    NotFoundError for weights that are neither here nor there.
    """
    path = downloads.weights_file(model)
    if path is None or model.file is not None or path.exists():
        pretrained_weights(model, where)
    else:
        size = downloads.expect(downloads.url(model), path, f"{where}.weights: {model.weights}")
        console.say(
            f"{where}.weights: {model.weights}: {path.name} is not in {path.parent} yet; the"
            f" training downloads it ({size}) from {downloads.url(model)}"
        )


def read_state_dict(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors by name that a file holds, or those of its preferred state_dict.

    Raises InputError, which begins with `where`, for any other content.
    """
    content = _content(path, where)
    with _naming(path, where):
        return torch_files.tensors(foreign.state_dicts(content)[0].records)


def read_network(
    path: Path,
    architecture: params.Architecture,
    where: str,
    *,
    keep_head: bool,
    ignore_normalisation: bool,
    remedy: str,
) -> dict[str, Tensor]:
    """Return the tensors of a network in a file, in the network's own types.

    Those of the last layer are left out, except with `keep_head`. Says what was taken from a file
    that holds more. Raises InputError, which begins with `where`, for another network, for tensors
    that are not finite, and, with `remedy`, for a normalisation that cannot be folded.
    """
    expected = resnet.expected(architecture, 2)
    body = {name: tensor for name, tensor in expected.items() if not name.startswith("fc.")}
    content = _content(path, where)
    with _naming(path, where):
        parts = foreign.state_dicts(content)
        fitting = foreign.fitting(parts, body)
        if not fitting:
            raise InputError(_differences(parts, body, architecture))
        copy = foreign.chosen(fitting)
        std = None if ignore_normalisation else normalisation.std_to_fold(copy.around, remedy)
        head = _head(copy, expected) if keep_head else {}
    place = f"{where}: {path}"
    taken = {
        name: _converted(tensor, expected[name].dtype, place, name)
        for name, tensor in {**copy.tensors, **head}.items()
        if name in body or name in head
    }
    if std is not None:
        first = next(iter(body))  # the weights of the first convolution
        weight = normalisation.folded(taken[first], std)
        taken[first] = _converted(weight, expected[first].dtype, place, first)
    _say_taken(place, copy, taken, std)
    return taken


def _content(path: Path, where: str) -> Any:
    """Return what a file holds, with records in place of tensors."""
    try:
        size = limits.regular(path, "put it there")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    with _naming(path, where, UNSAFE):
        with path.open("rb") as file:
            start = file.read(9)
        if _is_safetensors(start, size):
            limits.expect_fits(2 * size, size)
            return safetensors.load(path.read_bytes())
        return untrusted.load(path, MAX_STEPS)


def _is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file begins with the length of a header and the header's first letter."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


@contextmanager
def _naming(path: Path, where: str, problem: str = "") -> Iterator[None]:
    """Name the file in errors, and turn what damaged files raise into one line."""
    try:
        yield
    except (InputError, *untrusted.UNREADABLE, SafetensorError) as error:
        text = reason(error)
        if problem or text.startswith("refused") or not isinstance(error, InputError):
            text = f"{problem or UNSAFE} ({text})"
        raise InputError(f"{where}: {path}: {text}") from error


def _head(copy: Copy, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the last layer, of any number of classes."""
    weight, bias = (copy.tensors.get(name) for name in HEAD)
    n_features = expected[HEAD[0]].shape[1]
    if (
        weight is None
        or bias is None
        or bias.shape != weight.shape[:1]
        or weight.shape[1:] != (n_features,)
        or not (weight.is_floating_point() and bias.is_floating_point())
    ):
        found = foreign.listed(
            f"{shown(name)} {_shown(tensor)}"
            for name, tensor in copy.tensors.items()
            if name.startswith("fc.")
        )
        raise InputError(
            f"expected fc.weight of {n_features} features and fc.bias, which keep_head: true keeps,"
            f" found {found or 'none'}; write keep_head: false"
        )
    return {HEAD[0]: weight, HEAD[1]: bias}


def _say_taken(place: str, copy: Copy, taken: Mapping[str, Tensor], std: Tensor | None) -> None:
    """Say what was taken from a file that holds more than a network, and what was not."""
    part = copy.state_dict
    layers = [".".join(name.split(".", 2)[:2]) for name in copy.around]
    around = dict.fromkeys(shown(name) for name in [*part.others, *layers])
    if not (copy.prefix or part.keys or around or std is not None or HEAD[0] in taken):
        return
    prefix = f" without the prefix {shown(copy.prefix)}" if copy.prefix else ""
    head = "with" if HEAD[0] in taken else "without"
    folded = ""
    if std is not None:
        folded = f"; conv1.weight is divided by the std {normalisation.numbers(std)}"
    left = f"; left {foreign.listed(around, 8)}" if around else ""
    console.say_once(
        f"{place}: took {len(taken)} tensors{part.below}{prefix}, {head} the last layer"
        f"{folded}{left}"
    )


def _converted(tensor: Tensor, dtype: torch.dtype, where: str, name: str) -> Tensor:
    """Return a tensor in the network's own type.

    Says once that a file has other types. Raises InputError for numbers that are not finite in the
    network's type.
    """
    converted = tensor.to(dtype)
    if tensor.dtype != dtype:
        console.say_once(
            f"{where}: its tensors in {_type(tensor)} are converted to {_type(converted)}"
        )
    if not converted.isfinite().all():
        raise InputError(
            f"{where}: {name}: expected finite numbers in {_type(converted)},"
            " found NaN or infinity; use other weights"
        )
    return converted


def _differences(parts: list[StateDict], expected: Mapping[str, Tensor], architecture: str) -> str:
    """Return how many tensors differ from the network's, and the first ones.

    These are two of the network's, and one that only the file has. They are of the place in the
    file that is most like the network.
    """
    copies = [copy for part in parts[:MAX_PARTS] for copy in foreign.copies(part, expected)]
    copy = min(copies, key=lambda copy: len(foreign.differing(copy, expected)))
    names = foreign.differing(copy, expected)
    first = [
        *[name for name in names if name in expected][:2],
        *[name for name in names if name not in expected][:1],
    ]
    tensors = [
        f"{ascii(copy.prefix + name)[1:-1][:100]} (expected {_shown(expected.get(name))},"
        f" found {_shown(copy.tensors.get(name))})"
        for name in first
    ]
    return (
        f"its tensors{copy.state_dict.below} are not those of a {architecture}:"
        f" {len(names)} differ, first {', '.join(tensors)}"
    )


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{shape} in {_type(tensor)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
