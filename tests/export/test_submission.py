import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML
from torchvision import models

from pipeline import networks
from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.export import __main__ as stage
from pipeline.export import card, submission
from tests.conftest import make_block


@pytest.fixture(scope="module")
def network():
    """Stock, as a grader builds it."""
    torch.manual_seed(0)
    return models.resnet18(num_classes=3).eval()


@pytest.fixture
def checkpoint(network):
    return networks.Checkpoint(
        architecture="resnet18",
        class_names=["a", "b", "c"],
        state_dict=dict(network.state_dict()),
        provenance={},
    )


@pytest.fixture
def val(network):
    """Images that the network gets right, all but a quarter."""
    block = make_block(40)
    labels = networks.predict(network, block.images, 40)
    labels[:10] = (labels[:10] + 1) % 3
    return store.Block(**{**block.datasets, "labels": labels})


def test_the_exported_file_is_what_a_grader_loads(checkpoint, val, network, tmp_path):
    out = tmp_path / "submission.pt"
    assert submission.export(checkpoint, val, out) == 0.75
    graded = models.resnet18(weights=None)
    graded.fc = torch.nn.Linear(graded.fc.in_features, 3)
    content = torch.load(out, map_location="cpu", weights_only=True)
    assert all(
        type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in content.values()
    )
    graded.load_state_dict(content, strict=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(graded.eval()(images), network.eval()(images))


def with_tensors(checkpoint, **tensors):
    return networks.Checkpoint(
        architecture="resnet18",
        class_names=["a", "b", "c"],
        state_dict={**checkpoint.state_dict, **tensors},
        provenance={},
    )


def test_models_that_a_grader_would_refuse_are_not_written(checkpoint, val, tmp_path):
    out = tmp_path / "submission.pt"
    for broken, message in [
        (
            with_tensors(checkpoint, **{"fc.bias": torch.full((3,), torch.nan)}),
            "fc.bias holds numbers that are not finite",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            submission.export(broken, val, out)
    assert not out.exists()


def test_the_name_of_every_output_is_written_beside_it(tmp_path):
    submission.write_classes(["2", "10", "a, b"], tmp_path / "classes.csv")
    assert (tmp_path / "classes.csv").read_text() == 'output,class_name\n0,2\n1,10\n2,"a, b"\n'


def result(accuracy, **about):
    bounds = {"low95": accuracy - 0.01, "high95": accuracy + 0.01}
    return {"accuracy": accuracy, **bounds, "n": 500, **about}


IMAGES = SimpleNamespace(attributes={"source": "digits"}, image_shape=(3, 16, 16))
METRICS = {
    "sha256": hashlib.sha256(b"model").hexdigest(),
    "data_set": {"judged": "test"},
    "clean": result(0.9),
    "transfer": {"pgd": result(0.7)},
    "robust": {"pgd": result(0.05, eps=8 / 255, steps=20), "worst": result(0.04)},
    "diagnostics": {
        "verdict": "upper bound",
        "checks": {"judged_images_not_held_out": {"value": 0.0}},
    },
}


def test_the_expectation_is_robust_and_never_transfer():
    clean, pgd, worst, evidence = submission.expectation(METRICS)
    assert clean.strip() == "clean:  90.0 %  (95 %: 89.0 to 91.0, n = 500)"
    assert pgd.strip() == ("robust, pgd, eps 8/255, 20 steps:   5.0 %  (95 %: 4.0 to 6.0, n = 500)")
    assert worst.strip() == "robust, worst:   4.0 %  (95 %: 3.0 to 5.0, n = 500)"
    assert evidence.strip() == "evidence for the robust accuracy: upper bound"


def test_metrics_must_be_those_of_the_model():
    path = Path("m.json")
    submission.expect_judged(path, METRICS, METRICS["sha256"])
    with pytest.raises(
        InputError, match="m.json: judges another model; `dvc repro` makes it again"
    ):
        submission.expect_judged(path, METRICS, "other")


def test_the_card_has_metadata_figures_and_lines_that_load_the_file(
    checkpoint, val, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    submission.export(checkpoint, val, tmp_path / "submission.pt")
    trained = {"training.of": "clean", "attack_passes": 12345, "weights.sha256": ""}
    about = networks.Checkpoint(**{**vars(checkpoint), "provenance": trained})
    text = card.text("refreshed", about, checkpoint, METRICS, IMAGES, 1)
    _, head, body = text.split("---\n", 2)
    (judged,) = YAML(typ="safe").load(head)["model-index"][0]["results"]
    assert judged["dataset"]["name"] == "digits"
    assert [metric["value"] for metric in judged["metrics"]] == [0.9, 0.05, 0.04]
    assert "| robust, pgd, eps 8/255, 20 steps | 5.0 | 4.0 to 6.0 | 500 |" in body
    assert "fine-tuned from `clean`" in body
    assert "on test images, which chose nothing. No training step used them. Robust" in body
    assert "12,345 gradients" in body
    assert "70.0" not in body, "transfer accuracy"
    lines = body.split("```python\n")[1].split("```")[0]
    assert len(lines.splitlines()) == 4
    found = {}
    exec(lines, found)
    assert found["model"](torch.rand(1, 3, 16, 16)).shape == (1, 3)


def test_the_card_tells_of_judged_images_that_are_training_images_too(checkpoint):
    copied = {"verdict": "strong", "checks": {"judged_images_not_held_out": {"value": 0.012}}}
    text = card.text("x", checkpoint, checkpoint, {**METRICS, "diagnostics": copied}, IMAGES, 1)
    assert "which chose nothing. 1.2% of them are training images too, pixel by pixel." in text
    assert "No training step" not in text


def test_the_card_of_a_model_trained_elsewhere_promises_nothing(checkpoint):
    adopted = dataclasses.replace(checkpoint, provenance={"file.sha256": "a" * 64})
    tuned = dataclasses.replace(checkpoint, provenance={"training.of": "mine"})
    unknown = "was trained elsewhere; whether on these images is not known. Robust"
    for model, name in ((adopted, "This model"), (tuned, "The model that it starts from")):
        text = card.text("x", model, adopted, METRICS, IMAGES, 1)
        assert f"on test images, which chose nothing. {name} {unknown}" in text
        assert "No training step" not in text


def test_the_card_names_weights_of_ones_own_and_what_the_images_chose(checkpoint):
    own = dataclasses.replace(checkpoint, provenance={"weights": "models/pretrained/own.pth"})
    text = card.text("x", own, own, METRICS, IMAGES, 3)
    assert (
        "on test images, which also chose this model among 3. This model begins with "
        "`models/pretrained/own.pth`, which was trained elsewhere; whether on these images is not "
        "known."
    ) in text
    official = dataclasses.replace(checkpoint, provenance={"weights": "IMAGENET1K_V2"})
    metrics = {**METRICS, "data_set": {**METRICS["data_set"], "judged": "val"}}
    text = card.text("x", official, official, metrics, IMAGES, 3)
    assert (
        "on validation images, which also chose the kept epoch and this model among 3. No training"
    ) in text


def test_the_card_follows_an_online_training_to_the_clean_model(checkpoint):
    clean = dataclasses.replace(checkpoint, provenance={"weights": "models/pretrained/own.pth"})
    online = dataclasses.replace(checkpoint, provenance={"training.start": "clean"})
    tuned = dataclasses.replace(checkpoint, provenance={"training.of": "online"})
    for model in (online, tuned):
        origin = card.origin(model, {"online": online, "clean": clean}.get)
        assert origin is clean
        text = card.text("x", model, origin, METRICS, IMAGES, 1)
        assert (
            "The model that it starts from begins with `models/pretrained/own.pth`, which" in text
        )
    fresh = dataclasses.replace(checkpoint, provenance={"training.start": '{"weights": null}'})
    assert card.origin(fresh, {}.get) is fresh


def test_the_card_of_an_adopted_model_tells_of_no_kept_epoch(checkpoint):
    adopted = dataclasses.replace(checkpoint, provenance={"file.sha256": "a" * 64})
    metrics = {**METRICS, "data_set": {"judged": "val"}}
    assert "validation images, which also chose this model among 3. This" in card.text(
        "x", adopted, adopted, metrics, IMAGES, 3
    )


def test_models_that_began_with_each_other_are_refused(checkpoint):
    swapped = dataclasses.replace(checkpoint, provenance={"training.of": "clean"})
    with pytest.raises(InputError, match="models: clean is recorded as trained from itself"):
        card.origin(swapped, lambda _: swapped)


def test_a_low_accuracy_is_said_of_the_images_that_it_is_on():
    assert stage.low(0.4, "test", 0.5).startswith("clean accuracy 0.4000 on test images is not")
    assert stage.low(0.4, "val", 0.5).startswith("clean accuracy 0.4000 on validation images is n")
