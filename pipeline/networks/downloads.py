"""Download torchvision's weights once, and find out before a run whether that is possible."""

from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.networks import params
from pipeline.networks.torchvision_models import models

TIMEOUT = 10  # seconds


class NotFoundError(InputError):
    """Weights that are neither here nor where they are downloaded from."""


def weights_file(model: params.Model) -> Path | None:
    """Return where the weights that `model.weights` names are kept.

    The file may be missing. Return None for a start from scratch.
    """
    if model.weights is None:
        return None
    return model.file or Path(torch.hub.get_dir()) / "checkpoints" / url(model).rsplit("/", 1)[1]


def url(model: params.Model) -> str:
    """Return where torchvision's weights of a model are downloaded from."""
    return str(models.get_model_weights(model.architecture)[model.weights].url)


def expect(source: str, path: Path, where: str) -> str:
    """Return the size of a file that can be downloaded, in words.

    Raises NotFoundError, which begins with `where`, if it cannot be downloaded from here.
    """
    try:
        with urlopen(Request(source, method="HEAD"), timeout=TIMEOUT) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length", "")
    except (OSError, ValueError, HTTPException) as error:
        raise NotFoundError(_refusal(source, path, where, error)) from error
    return f"{int(length) / 2**20:,.0f} MiB" if length.isdigit() else "size unknown"


def fetch(source: str, path: Path, where: str) -> None:
    """Download a file unless it exists, and compare its hash with the one in its name."""
    prefix = _hash_prefix(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError, HTTPException) as error:
            raise InputError(_refusal(source, path, where, error)) from error
    found = files.sha256(path)
    if not found.startswith(prefix):
        raise InputError(
            f"{where}: {path}: expected a SHA-256 that begins with {prefix},"
            f" found {found[:8]}; delete the file"
        )


def _hash_prefix(path: Path) -> str:
    """Return the start of the SHA-256 of a file in torch's hub folder, as its name says."""
    return path.stem.rsplit("-", 1)[1]


def _refusal(source: str, path: Path, where: str, error: Exception) -> str:
    """Return that a download failed, and what else can be done."""
    reason = " ".join(str(error).split())[:150]
    return (
        f"{where}: {path.name} cannot be downloaded ({reason}) from {source}; put that file, whose"
        f" SHA-256 begins with {_hash_prefix(path)}, into {path.parent}, or set weights to a file"
        " in models/pretrained, or to null to start from scratch"
    )
