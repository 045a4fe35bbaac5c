"""Compare what `make plan` expected of each stage with what the stages took since.

Run `python -m benchmarks.planned` after `make plan` and `make repro` with the same params. It shows
the stages that took more than LONG seconds. It ends with an error if the plan was wrong by more
than LIMIT for one of them. A stage records its seconds from the end of its imports on, so the
seconds of a start are measured and added. What DVC does between stages is in neither number.
"""

import json
from pathlib import Path

from benchmarks.tables import machine, markdown
from pipeline.base import console, costs, remaining
from pipeline.base.errors import InputError
from pipeline.plan import rates

LONG = 20.0  # seconds
LIMIT = 0.25  # of the seconds that a stage took


def taken(folder: Path = costs.FOLDER) -> dict[str, float]:
    """Return the seconds, without the start, of each stage that ran after the plan was made."""
    planned_at = (folder / remaining.FILE.name).stat().st_mtime
    records = [
        path
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        if path.stat().st_mtime > planned_at
    ]
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in records}


def main() -> str:
    planned = remaining.kept()
    if not planned:
        raise InputError(f"{remaining.FILE}: no plan of today's params; run make plan first")
    found = {stage: seconds for stage, seconds in taken().items() if stage in planned}
    starts = {modules: rates.start_up(modules) for modules in set(map(rates.imports, found))}
    whole = {stage: seconds + starts[rates.imports(stage)] for stage, seconds in found.items()}
    long = {stage: round(seconds, 1) for stage, seconds in whole.items() if seconds > LONG}
    if not long:
        raise InputError(
            f"{costs.FOLDER}: no stage took more than {LONG:g} s since make plan; run make repro"
        )
    off = {stage: planned[stage] / seconds - 1 for stage, seconds in long.items()}
    rows = [
        {
            "stage": stage,
            "planned, s": planned[stage],
            "run, s": seconds,
            "difference, %": round(100 * off[stage]),
        }
        for stage, seconds in long.items()
    ]
    print(f"{machine()}\n\n{markdown(rows)}")
    wrong = [stage for stage, share in off.items() if abs(share) > LIMIT]
    if wrong:
        raise InputError(f"the plan is wrong by more than {LIMIT:.0%}: {', '.join(wrong)}")
    return f"the plan is right within {LIMIT:.0%} for {len(rows)} stages"


if __name__ == "__main__":
    console.run(main)
