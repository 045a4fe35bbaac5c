import numpy as np
import pytest

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.evaluate import table
from pipeline.networks import scores


def result(accuracy, **more):
    return {
        "accuracy": accuracy,
        "low95": accuracy - 0.02,
        "high95": accuracy + 0.02,
        "n": 297,
        **more,
    }


DATA_SET = {
    "source": "digits",
    "n": 1_797,
    "image_size": 32,
    "classes": 10,
    "judged": "test",
    "sha256": "0" * 64,
}


def diagnosed(verdict="strong", **failed):
    checks = {
        name: {"value": value, "limit": 0.02, "sign": "<=", "n": 48, "verdict": "failed"}
        for name, value in failed.items()
    }
    checks["not_asked"] = {"value": None, "limit": 0.0, "sign": "<=", "n": 0, "verdict": "not run"}
    return {"verdict": verdict, "failed": list(failed), "threat": "pgd", "checks": checks}


def test_the_table_keeps_transfer_and_robust_apart(tmp_path):
    files.write_json(
        tmp_path / "older.json",
        {
            "attack_passes": 0,
            "data_set": DATA_SET,
            "clean": result(0.5),
            "transfer": {},
            "robust": {},
            "diagnostics": diagnosed(),
        },
    )
    own = {"made_against_this_model": True}
    trained = {"attack_passes": 1_234_567, "data_set": DATA_SET}
    suspect = diagnosed("suspect", black_box_finds_more=0.125)
    files.write_json(
        tmp_path / "robust.json",
        {
            **trained,
            "clean": result(0.9),
            "transfer": {"pgd": result(0.7)},
            "robust": {"pgd": result(0.05)},
            "diagnostics": suspect,
        },
    )
    files.write_json(
        tmp_path / "clean.json",
        {
            "attack_passes": 0,
            "data_set": DATA_SET,
            "clean": result(0.97),
            "transfer": {"pgd": result(0.1, **own)},
            "robust": {"pgd": result(0.1), "other": result(0.2)},
            "diagnostics": diagnosed(),
        },
    )
    head, names, clean, robust, *note = table.results(
        tmp_path, ["clean", "robust", "absent"]
    ).splitlines()
    assert head.split() == ["transfer", "robust"]
    assert names.split() == ["model", "attacks", "clean", "pgd", "pgd", "other", "evidence"]
    assert clean.split() == [
        "clean",
        "0.00M",
        "97.0",
        "±2.0",
        "10.0*",
        "±2.0",
        "10.0",
        "±2.0",
        "20.0",
        "±2.0",
        "strong",
    ]
    assert robust.split() == [
        "robust",
        "1.23M",
        "90.0",
        "±2.0",
        "70.0",
        "±2.0",
        "5.0",
        "±2.0",
        "-",
        "suspect",
    ]
    assert "says nothing about an attacker" in note[2]
    assert note[-3] == "robust: suspect: black_box_finds_more (0.125, limit <= 0.02, n = 48)"
    assert note[-2].startswith(
        "What the numbers are worth: worst of clean was found with APGD, and more iterations, "
    )
    assert note[-2].endswith("; a check of robust failed, so worst may be far too high.")
    assert note[-1] == "! absent: no metrics yet; `make repro` makes them"
    assert names.index("pgd") + len("pgd") == robust.index("70.0") + len("70.0 ±2.0")


def test_checks_are_a_line_each():
    head, found, none, last = table.checks(
        diagnosed("suspect", black_box_finds_more=0.125)
    ).splitlines()
    assert head == "checks of what pgd measured:"
    assert found.endswith(
        " black_box_finds_more              0.125  (limit <= 0.02, n = 48)  failed"
    )
    assert none.split() == ["not_asked", "-", "(limit", "<=", "0)", "not", "run"]
    assert last == "  evidence: suspect"


def test_checks_that_could_not_decide_are_named(tmp_path):
    unclear = {"value": 0.375, "limit": 0.02, "sign": "<=", "n": 8, "verdict": "inconclusive"}
    found = {**diagnosed("too few images"), "checks": {"black_box_finds_more": unclear}}
    parts = {
        "attack_passes": 0,
        "data_set": DATA_SET,
        "clean": result(0.9),
        "transfer": {},
        "robust": {},
    }
    files.write_json(tmp_path / "a.json", {**parts, "diagnostics": found})
    *_, named, worth = table.results(tmp_path, ["a"]).splitlines()
    assert named == "a: too few images: black_box_finds_more (0.375, limit <= 0.02, n = 8)"
    assert "a check of a had too few images to decide" in worth


@pytest.mark.parametrize(
    ("right", "n", "cell"),
    [
        (0, 40, "0.0 (0 to 8.8)"),
        (40, 40, "100.0 (91.2 to 100)"),
        (1, 100, "1.0 (0.2 to 5.4)"),
        (50, 100, "50.0 ±9.6"),
    ],
)
def test_an_interval_stays_between_0_and_100(right, n, cell):
    assert table._percent(scores.interval(np.arange(n) < right)) == cell


def test_no_metrics_yet(tmp_path):
    with pytest.raises(InputError, match="no metrics yet; `dvc repro` makes them"):
        table.results(tmp_path, ["clean"])
