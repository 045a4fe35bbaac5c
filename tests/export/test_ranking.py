import pytest

from pipeline.base.errors import InputError
from pipeline.export import ranking
from pipeline.export.params import Export


def result(accuracy, margin=0.02, **about):
    bounds = {"low95": accuracy - margin, "high95": accuracy + margin}
    return {"accuracy": accuracy, **bounds, "n": 500, **about}


def grid(fgsm, pgd, margin=0.02):
    """A grid in which accuracy falls with eps, down to what is given."""
    return [
        result(min(1, lowest + more), margin, guess=guess, eps=eps)
        for guess, lowest in (("FGSM", fgsm), ("PGD, alpha eps/4, 10 steps", pgd))
        for eps, more in ((8 / 255, 0.2), (16 / 255, 0.0))
    ] + [result(0.0, guess="worst of them", eps=16 / 255)]


METRICS = {
    "plain": {"clean": result(0.95)},
    "hard": {"clean": result(0.80)},
    "poor": {"clean": result(0.45)},
}
GRIDS = {"plain": grid(0.1, 0.0), "hard": grid(0.5, 0.4), "poor": grid(0.7, 0.7)}


def rule(**changes):
    return Export.model_validate({"model": "auto", "min_clean": 0.5, **changes})


def test_the_best_mean_wins_and_a_low_clean_accuracy_loses():
    ranked = ranking.rank(rule(), METRICS, GRIDS)
    assert [one.model for one in ranked] == ["hard", "plain", "poor"]
    assert ranked[0].score == pytest.approx((0.80 + 0.5 + 0.4) / 3)
    assert ranking.chosen(rule(), ranked) == "hard"
    assert ranking.chosen(rule(model="plain"), ranked) == "plain"
    only = {"poor": METRICS["poor"]}
    assert ranking.chosen(rule(), ranking.rank(rule(), only, GRIDS)) == "poor"


def test_weights_and_the_greatest_eps_decide():
    clean = rule(score={"clean": 1, "fgsm": 0, "pgd": 0})
    assert ranking.rank(clean, METRICS, GRIDS)[0].model == "plain"
    small = rule(score={"max_eps": "8/255"})
    assert ranking.rank(small, METRICS, GRIDS)[0].parts["pgd"]["accuracy"] == pytest.approx(0.6)
    nowhere = rule(score={"max_eps": "1/255"})
    assert ranking.rank(nowhere, METRICS, GRIDS) == []
    with pytest.raises(InputError, match="export.model: expected a name, found auto, which needs"):
        ranking.chosen(nowhere, [])


def test_the_table_names_weights_that_differ_and_stays_between_0_and_100():
    clean = rule(score={"clean": 1, "fgsm": 0, "pgd": 0})
    few = {"plain": {"clean": result(0.1, margin=0.3)}, "hard": {"clean": result(0.9, margin=0.3)}}
    lines = ranking.table(clean, ranking.rank(clean, few, GRIDS))
    assert lines[0].endswith("worst FGSM and PGD (weights: clean 1, fgsm 0, pgd 0)")
    assert "(95 %: 60.0 to 100.0)" in lines[1]
    assert "(95 %: 0.0 to 40.0)" in lines[2]


def test_models_that_cannot_be_told_apart_are_named():
    near = {**METRICS, "near": {"clean": result(0.79)}}
    ranked = ranking.rank(rule(), near, {**GRIDS, "near": grid(0.5, 0.4)})
    assert ranking.alike(ranked) == ["near"]
    lines = ranking.table(rule(), ranked)
    assert lines[1] == "  1. hard   56.7 % (95 %: 54.7 to 58.7): clean 80.0, fgsm 50.0, pgd 40.0"
    assert lines[4].endswith("pgd 70.0; not above export.min_clean")
    assert lines[5] == "  near cannot be told from hard on so few images"
    assert ranking.table(rule(), []) == []


def test_a_grid_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "clean").mkdir()
    for text in ("guess,eps\nFGSM,x\n", "a,b\n1,2\n"):
        (tmp_path / "clean/grid.csv").write_text(text)
        with pytest.raises(InputError, match=r"clean/grid.csv: cannot be read; `dvc repro` makes"):
            ranking.read_grids(tmp_path, ["clean"])
    (tmp_path / "clean/grid.csv").write_text("guess,eps,alpha,steps,n,accuracy,low95,high95\n")
    assert ranking.read_grids(tmp_path, ["clean"]) == {"clean": []}
