"""Read the name of the processor that a run asks for. Importing this module imports no torch."""

import os
import re

from pipeline.base.errors import InputError

VARIABLE = "PIPELINE_DEVICE"


def asked() -> str:
    """Return what `PIPELINE_DEVICE` asks for: `auto`, `cpu`, `cuda` or `cuda:N`.

    The default is `auto`. Raises InputError for another name.
    """
    name = os.environ.get(VARIABLE, "auto")
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name) is None:
        raise InputError(f"{VARIABLE}: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return name
