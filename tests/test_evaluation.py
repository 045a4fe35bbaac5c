import numpy as np
import pytest
import torch
from torch import nn

from pipeline import evaluation, generation, params
from pipeline.errors import InputError
from tests.conftest import FGSM, PGD, make_block, write_set


class Brightness(nn.Module):
    """Class 1 if the mean pixel is above a half, else class 0: an image falls exactly when its mean is within eps of a half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        score = (images.mean((1, 2, 3)) - 0.5) * self.scale
        return torch.stack([-score, score], dim=1)


def grey_block(levels):
    images = np.stack([np.full((3, 32, 32), level, np.uint8) for level in levels])
    block = make_block(len(levels))
    return type(block)(images=images, labels=(np.array(levels) > 127).astype(np.int64), ids=block.ids, split=np.ones(len(levels), np.uint8))


LEVELS = [60, 119, 121, 126, 129, 134, 136, 137, 200]  # 255 / 2 = 127.5; eps is 8 levels


@pytest.mark.parametrize("entry", [FGSM, {**PGD, "alpha": "4/255"}], ids=["FGSM", "PGD"])
def test_robust_accuracy_is_exact_where_it_is_known(entry):
    network, block = Brightness(), grey_block(LEVELS)
    threat = params.Threat.model_validate({**entry, "restarts": 2})
    standing = evaluation.withstands(network, block, threat, 2, batch_size=4, seed=0, text="t")
    assert standing.tolist() == [abs(level - 127.5) > 8 for level in LEVELS]
    assert network.scale.requires_grad
    assert network.training


def test_more_restarts_never_help_the_defender(network):
    block = make_block(24)
    weak, strong = (
        evaluation.withstands(
            network, block, params.Threat.model_validate({**PGD, "eps": "1/255", "alpha": "1/255", "restarts": n}), 3, batch_size=8, seed=1,
            text="t",
        )
        for n in (1, 4)
    )  # fmt: skip
    assert (strong <= weak).all()


def test_summaries_have_wilson_intervals_and_classes():
    result = evaluation.summarise(np.array([True] * 8 + [False] * 2), np.array([0] * 5 + [1] * 5), 3)
    assert result == {
        "accuracy": 0.8,
        "low95": 0.490162,
        "high95": 0.943318,
        "balanced_accuracy": 0.8,
        "n": 10,
        "per_class": [1.0, 0.6, None],
    }


def test_a_judgement_keeps_its_words_apart(tmp_path, network, settings):
    block = make_block(40)
    clean = write_set(tmp_path / "clean", block)
    settings = settings.evaluate.model_copy(
        update={"n_eval": 6, "threats": {"fgsm": params.Threat.model_validate({**FGSM, "restarts": 1})}}
    )
    spec = params.Attack.model_validate(FGSM)
    stored = generation.generate(
        clean,
        network,
        "me",
        spec,
        params.Generate(batch_size=8, precision="fp32", seed=0),
        name="fgsm",
        out=tmp_path / "adv",
        device=torch.device("cpu"),
    )
    metrics, confusion = evaluation.judge(network, clean, [stored], "me", settings)
    assert metrics["clean"]["n"] == metrics["transfer"]["fgsm"]["n"] == len(confusion) == 10
    assert metrics["transfer"]["mixed"]["n"] == 20
    assert metrics["robust"]["fgsm"]["n"] == 6
    assert metrics["transfer"]["fgsm"]["made_against_this_model"]
    assert metrics["robust"]["fgsm"]["eps"] == 8 / 255
    fooled = stored.load("val").fooled
    assert metrics["transfer"]["fgsm"]["accuracy"] == pytest.approx(1 - fooled.mean())
    hits = sum(line["actual"] == line["predicted"] for line in confusion)
    assert metrics["clean"]["accuracy"] == hits / 10
    assert not evaluation.judge(network, clean, [stored], "another", settings)[0]["transfer"]["fgsm"]["made_against_this_model"]
    with pytest.raises(InputError, match=r"made from another clean set: clean.digest"):
        evaluation.judge(network, write_set(tmp_path / "other", make_block(40, seed=2)), [stored], "me", settings)
