import numpy as np
import pytest
import torch

from pipeline.attacks.params import Attack, Generate, Threat
from pipeline.base.errors import InputError
from pipeline.cluster.here import Here
from pipeline.evaluate import ensemble, judgement
from pipeline.evaluate.params import Curves, Ensemble, Grid
from pipeline.generate import generation
from pipeline.networks import scores
from tests.conftest import FGSM, PGD, make_block, write_set

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_found_keeps_its_words_apart(tmp_path, network, settings, monkeypatch):
    monkeypatch.setattr(ensemble, "QUERIES", 5)
    curves_of = judgement.sweeps.curves
    block = make_block(40)
    clean = write_set(tmp_path / "clean", block)
    threats = {
        name: Threat.model_validate({**entry, "restarts": 1})
        for name, entry in (("fgsm", FGSM), ("pgd", {**PGD, "alpha": "eps/steps"}))
    }
    curves = Curves(threat="pgd", n_eval=4, eps=[8 / 255, 1.0], steps=[1, 4], restarts=2, queries=3)
    grid = Grid(n_eval=5, eps=[4 / 255, 8 / 255], alphas=["eps/2", 2 / 255], steps=[1, 2])
    changes = {
        "n_eval": 6,
        "threats": threats,
        "curves": curves,
        "grid": grid,
        "ensemble": Ensemble(members="all", n_eval=5, iterations=2, targets=3),
    }
    settings = settings.evaluate.model_copy(update=changes)
    spec = Attack.model_validate(FGSM)
    stored, foreign = (
        generation.generate(
            clean,
            network,
            sha256,
            spec,
            Generate(batch_size=8, precision="fp32", seed=0),
            name="fgsm",
            out=tmp_path / sha256,
            workers=Here(torch.device("cpu")),
        )
        for sha256 in ("me", "another")
    )
    drawn = []
    monkeypatch.setattr(
        judgement.sweeps, "curves", lambda *given: drawn.append(given[2]) or curves_of(*given)
    )
    found = judgement.judge(network, clean, [stored], "me", settings)
    assert drawn[0].alpha == threats["pgd"].parameters["alpha"], "more steps keep the alpha"
    metrics, confusion = found.metrics, found.confusion
    assert metrics["data_set"] == {
        "source": None,
        "source_sha256": None,
        "sha256": clean.digest,
        "judged": "val",
        "n": 40,
        "classes": 3,
        "image_size": 16,
    }
    assert metrics["clean"]["n"] == metrics["transfer"]["fgsm"]["n"] == len(confusion) == 10
    mixed = metrics["transfer"]["mixed"]
    assert mixed["n"] == 20
    of_ten = scores.interval(np.arange(10) < round(10 * mixed["accuracy"]))
    assert (mixed["low95"], mixed["high95"]) == (of_ten["low95"], of_ten["high95"])
    assert metrics["robust"]["fgsm"]["n"] == 6
    assert metrics["robust"]["ensemble"]["n"] == metrics["robust"]["worst"]["n"] == 5
    assert metrics["robust"]["worst"]["over"] == ["fgsm", "pgd", "ensemble"]
    assert metrics["grid"]["guesses"] == len(found.grid) - 2 == 10
    assert len(found.curves) == 3 + 3 + 2
    assert metrics["transfer"]["fgsm"]["made_against_this_model"]
    assert metrics["robust"]["fgsm"]["eps"] == 8 / 255
    assert metrics["robust"]["pgd"]["alpha"] == "eps/steps", "as in the params"
    fooled = stored.load("val").fooled
    assert metrics["transfer"]["fgsm"]["accuracy"] == pytest.approx(1 - fooled.mean())
    hits = sum(line["actual"] == line["predicted"] for line in confusion)
    assert metrics["clean"]["accuracy"] == hits / 10
    assert not judgement.judge(network, clean, [stored], "another", settings).metrics["transfer"][
        "fgsm"
    ]["made_against_this_model"]
    with pytest.raises(InputError, match=r"made from another clean set: clean.digest"):
        judgement.judge(
            network, write_set(tmp_path / "other", make_block(40, seed=2)), [stored], "me", settings
        )
    with pytest.raises(
        InputError, match=r"another: made from another model than .*me: model.sha256"
    ):
        judgement.judge(network, clean, [stored, foreign], "me", settings)


def test_a_share_of_eps_is_that_of_the_threat_and_not_of_what_varies_it():
    entry = {**PGD, "eps": 0.1, "alpha": "eps/steps", "steps": 20, "restarts": 1}
    threat = Threat.model_validate(entry).resolved
    assert threat.model_copy(update={"steps": 40}).parameters["alpha"] == pytest.approx(0.005)


def test_worst_case_covers_images_that_every_attack_tried():
    large, small = np.array([1, 3, 4, 8]), np.array([3, 8])
    tried = [(large, np.array([True, True, True, True])), (small, np.array([True, False]))]
    rows, standing = judgement._worst(
        [judgement.Tried(eps=0.1, rows=rows, standing=standing) for rows, standing in tried]
    )
    assert rows.tolist() == [3, 8]
    assert standing.tolist() == [True, False]
