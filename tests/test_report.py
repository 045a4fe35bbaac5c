import pytest

from pipeline import files, report
from pipeline.errors import InputError


def result(accuracy, **more):
    return {"accuracy": accuracy, "low95": accuracy - 0.02, "high95": accuracy + 0.02, **more}


def test_the_table_keeps_transfer_and_robust_apart(tmp_path):
    files.write_json(tmp_path / "older.json", {"clean": result(0.5), "transfer": {}, "robust": {}})
    own = {"made_against_this_model": True}
    files.write_json(tmp_path / "robust.json", {"clean": result(0.9), "transfer": {"pgd": result(0.7)}, "robust": {"pgd": result(0.05)}})
    files.write_json(
        tmp_path / "clean.json",
        {"clean": result(0.97), "transfer": {"pgd": result(0.1, **own)}, "robust": {"pgd": result(0.1), "other": result(0.2)}},
    )
    head, names, clean, robust, *note = report.results(tmp_path, ["clean", "robust", "not yet"]).splitlines()
    assert head.split() == ["transfer", "robust"]
    assert names.split() == ["model", "clean", "pgd", "pgd", "other"]
    assert clean.split() == ["clean", "97.0", "±2.0", "10.0*", "±2.0", "10.0", "±2.0", "20.0", "±2.0"]
    assert robust.split() == ["robust", "90.0", "±2.0", "70.0", "±2.0", "5.0", "±2.0", "-"]
    assert "says nothing about an attacker" in note[0]
    assert names.index("pgd") + len("pgd") == robust.index("70.0") + len("70.0 ±2.0")


def test_no_metrics_yet(tmp_path):
    with pytest.raises(InputError, match="no metrics yet; `dvc repro` makes them"):
        report.results(tmp_path, ["clean"])
