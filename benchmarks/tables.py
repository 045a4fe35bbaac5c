"""Format results: describe the machine, make tables, and write them into a page."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.networks import device


def write_between(page: Path, markers: tuple[str, str], text: str) -> None:
    """Write text between two lines of a page. Raises InputError where a line is missing."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise InputError(f"{page}: expected the lines {markers[0]} and {markers[1]}. Add them.")
    files.write_bytes(page, f"{before}{begin}\n{text}\n{end}{after}".encode())


def machine() -> str:
    """Return a description of the machine and the device that a run computes on.

    An example is "cpu (2 threads), 2 cores of AMD EPYC with AVX512, bf16, no AMX, torch 2.15.0".
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    bf16 = "bf16" if device.multiplies_bfloat16(torch.device("cpu")) else "no bf16"
    cpu = (
        f"{os.cpu_count()} cores of {model} with {torch.backends.cpu.get_cpu_capability()}, "
        f"{bf16}, {amx}"
    )
    return f"{device.describe(device.choose())}, {cpu}, torch {torch.__version__}"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table with the columns of the first row.

    Integers get thousands separators. Other numbers below 100 get three significant figures.
    """
    columns = list(rows[0])
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row[column]) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
