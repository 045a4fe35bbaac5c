"""What the folder holds of earlier runs: results to restore, and sets that no stage makes now."""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.audit import lineage
from pipeline.base import console, files, params
from pipeline.results import METRICS

ADVERSARIAL = Path("data/adversarial")
SOURCES = ADVERSARIAL / "sources"
UNCACHED = (METRICS, Path("plots"), Path("report/audit.json"))  # kept in Git, not in DVC's cache


def small_results() -> dict[Path, bytes]:
    """Return the content of all results that DVC's cache does not keep."""
    return {
        path: path.read_bytes()
        for kept in UNCACHED
        for path in [kept, *kept.rglob("*")]
        if path.is_file()
    }


def restore(
    stages: Iterable[str], small: Mapping[Path, bytes], environment: Mapping[str, str]
) -> list[str]:
    """Restore the earlier outputs of stages that did not end, and return those that are lost.

    DVC deletes them before it runs a stage. If one of a stage is missing, the others are not the
    earlier ones either: they are replaced, and unfinished work can make them again. Outputs come
    back from DVC's cache, and small ones from `small`. (`persist: true` would keep small ones too.
    But DVC would then never take such a stage from its run cache: it would train again.)
    """
    ended = recorded()
    incomplete = [
        Path(out)
        for name in stages
        if name in ended and not all(Path(out).exists() for out in ended[name].outs)
        for out in ended[name].outs
    ]
    for path, content in small.items():
        if not path.exists() or any(path.is_relative_to(out) for out in incomplete):
            files.write_bytes(path, content)
    outs = [
        str(out) for out in incomplete if not any(out.is_relative_to(kept) for kept in UNCACHED)
    ]
    if outs:
        checkout = [sys.executable, "-m", "dvc", "checkout", "--quiet", "--force", *outs]
        subprocess.run(checkout, env=environment, check=False, stderr=subprocess.DEVNULL)
    return [out for out in outs if not Path(out).exists()]


def remove_undeclared_sets(stages: Mapping[str, lineage.Declared]) -> None:
    """Delete the adversarial sets that an earlier run recorded and that no stage makes any more.

    Print the path of each. DVC's cache keeps them. What no run has recorded stays.
    """
    now = {out for stage in stages.values() for out in stage.outs}
    made = {out for stage in recorded().values() for out in stage.outs}
    for folder in sorted(ADVERSARIAL.rglob("*/")):
        if str(folder) in made - now:
            shutil.rmtree(folder)
            console.say(
                f"{folder}: removed, since {params.FILE} no longer asks for it (DVC's cache keeps "
                "it)"
            )


def recorded() -> dict[str, lineage.Recorded]:
    """Return the stages of `dvc.lock` by name, or none where nothing ran yet."""
    return lineage.recorded(Path()) if Path(lineage.RECORDED).exists() else {}
