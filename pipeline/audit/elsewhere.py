"""Compute again as something was computed, and say what is different here."""

from collections.abc import Mapping
from typing import Any

import torch

from pipeline import attacks
from pipeline.networks.device import processor


def made_elsewhere(record: Mapping[str, Any], device: torch.device) -> str:
    """Return with what a set or metrics were made, if a computation here may round differently.

    The result is empty if `record` names this processor and these libraries.
    """
    here = {"processor": processor(device), **attacks.versions()}
    others = [
        f"{key} {record.get(key)} (here {value})"
        for key, value in here.items()
        if record.get(key) != value
    ]
    return f"made with {', '.join(others)}" if others else ""
