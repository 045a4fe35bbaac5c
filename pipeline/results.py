"""Show the results, and tell which of them are not those of the present params and models."""

import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import document
from pipeline.audit import lineage
from pipeline.base import files, params
from pipeline.base.errors import InputError
from pipeline.evaluate import table

METRICS = Path("metrics")
NAMED = 3  # keys of params.yaml that a reason names
WIDTH = 120  # columns of the lines below the table


def results() -> str:
    """Return the table of all evaluated models.

    It marks what does not belong to the present params and models, and names the commit.
    """
    names = list(document.load(params.FILE).evaluate.models)
    text = table.results(METRICS, names, outdated(names))
    return "\n".join(map(_wrapped, [*text.splitlines(), *_commit()]))


def _wrapped(line: str) -> str:
    """Return a line in several ones if it is long. Lines of the table begin with a space."""
    if line.startswith(" "):
        return line
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def outdated(names: list[str]) -> dict[str, str]:
    """Return why the results of models are not those of the present params, by model.

    Models whose results belong to the present params are left out. Code and images are not
    compared; `dvc status` does so.
    """
    try:
        recorded = lineage.recorded(Path())
    except InputError:
        return dict.fromkeys(names, f"not in {lineage.RECORDED}")
    written = params.read(params.FILE)
    reasons = {name: next(_reasons(name, recorded, written), "") for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _reasons(
    name: str, recorded: dict[str, lineage.Recorded], written: dict[str, Any]
) -> Iterator[str]:
    """Yield why the results of a model are not those of the present params and models."""
    stage, path = f"evaluate@{name}", METRICS / f"{name}.json"
    if stage not in recorded:
        yield f"not in {lineage.RECORDED}"
        return
    if not path.exists():
        return  # the table leaves such a model out
    upstream = [stage, *lineage.upstream(stage, recorded)]
    keys = dict.fromkeys(
        key
        for other, entry in recorded.items()
        for key, value in entry.declared.items()
        if other in upstream and _value(written, key) != value
    )
    if keys:
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        yield f"made with another {', '.join([*keys][:NAMED])}{more} in {params.FILE}"
    if recorded[stage].outs.get(str(path)) != lineage.md5(path):
        yield f"not what {lineage.RECORDED} records"
    model = Path("models", f"{name}.safetensors")
    if model.exists() and files.read_json(path, "sha256")["sha256"] != files.sha256(model):
        yield f"made with another {model}"


def _value(content: Any, key: str) -> Any:
    """Return the value of a dotted key in nested values, or None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _commit() -> Iterator[str]:
    """Yield the commit that the metrics are from, in a Git repository, where there is a git."""
    if shutil.which("git") is None:
        return
    last, changed = (
        subprocess.run(
            ["git", *arguments, "--", str(METRICS)],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        for arguments in (("log", "-1", "--format=%h"), ("status", "--porcelain"))
    )
    if changed.returncode == 0:
        is_committed = last.stdout.strip() and not changed.stdout.strip()
        yield f"Commit: {last.stdout.strip() if is_committed else f'none yet of {METRICS}/'}."
