"""Keep finished rows in docs/results/robustness.json, and write their tables into the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.robustness.recipes import Entry
from benchmarks.tables import write_between
from pipeline.base import files

RESULT = Path("docs/results/robustness.json")
PAGE = Path("docs/robustness.md")
MARKERS = ("<!-- benchmarks.robustness: begin -->", "<!-- benchmarks.robustness: end -->")


def keep(row: Entry) -> None:
    """Add a row to the file and to the page."""
    found = [*rows(), row]
    files.write_json(RESULT, {"rows": found})
    write_page(found)


def rows() -> list[Entry]:
    if not RESULT.exists():
        return []
    found: list[Entry] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    return found


def write_page(rows: Sequence[Entry]) -> None:
    """Write the tables of all rows between the markers of the page."""
    write_between(PAGE, MARKERS, tables(rows))


def tables(rows: Sequence[Entry]) -> str:
    """Return one table for every setting, with the newest result of each row and seed."""
    by_setting: dict[str, dict[tuple[str, int], Entry]] = {}
    for row in rows:
        place = json.dumps({**row["setting"], "machine": row["machine"]}, sort_keys=True)
        by_setting.setdefault(place, {})[row["row"], row["seed"]] = row
    return "\n".join(_table(list(found.values())) for found in by_setting.values())


def _table(rows: Sequence[Entry]) -> str:
    setting = rows[0]["setting"]
    about = setting["ensemble"]
    members = "all members" if about["members"] == "all" else "APGD-CE and APGD-T"
    head = (
        f"\n{setting['images']:,} training images, {setting['epochs']} epochs after "
        f"{setting['clean_epochs']} clean ones; {setting['judged']:,} judged images, "
        f"{about['n_eval']:,} by the ensemble ({members}, {about['iterations']} iterations, "
        f"{about['targets']} targets); {rows[0]['machine']}:\n"
    )
    columns = ("row", "seed", "clean", "FGSM", "PGD-20", "ensemble")
    costs = ("attack gradients", "seconds", "CPU seconds", "verdict")
    lines = [f"| {' | '.join((*columns, *costs))} |", f"|{'---|' * 10}"]
    return "\n".join([head, *lines, *map(line, rows)])


def line(row: Entry) -> str:
    robust = row["robust"]
    ensembled = robust["ensemble"] if "ensemble" in robust else robust["apgd"]
    cells = [
        row["row"],
        str(row["seed"]),
        *(_share(found) for found in (row["clean"], robust["fgsm"], robust["pgd"], ensembled)),
        f"{row['attack_gradients']:,}",
        f"{row['seconds']:,.0f}",
        f"{row['cpu_seconds']:,.0f}",
        row["verdict"],
    ]
    return f"| {' | '.join(cells)} |"


def _share(found: Mapping[str, float]) -> str:
    half = 50 * (found["high95"] - found["low95"])
    return f"{100 * found['accuracy']:.1f} ±{half:.1f}"
