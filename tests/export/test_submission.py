import hashlib

import pytest
import torch
from torchvision import models

from pipeline import networks
from pipeline.base import files, store
from pipeline.base.errors import InputError
from pipeline.export import submission
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
        (with_tensors(checkpoint, mean=torch.zeros(3)), "differs from a stock resnet18 in mean"),
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


def test_the_expectation_is_robust_and_never_transfer(tmp_path):
    def result(accuracy):
        return {"accuracy": accuracy, "low95": accuracy - 0.01, "high95": accuracy + 0.01, "n": 500}

    sha256 = hashlib.sha256(b"model").hexdigest()
    metrics = {
        "sha256": sha256,
        "clean": result(0.9),
        "transfer": {"pgd": result(0.7)},
        "robust": {"pgd": result(0.05)},
    }
    files.write_json(tmp_path / "m.json", metrics)
    clean, robust = submission.expectation(tmp_path / "m.json", sha256)
    assert clean.strip() == "clean:  90.0 %  (95 %: 89.0 to 91.0, n = 500)"
    assert robust.strip() == "robust, pgd:   5.0 %  (95 %: 4.0 to 6.0, n = 500)"
    with pytest.raises(InputError, match="judges another model"):
        submission.expectation(tmp_path / "m.json", "other")
    with pytest.raises(InputError, match="cannot be read; `dvc repro` makes it"):
        submission.expectation(tmp_path / "none.json", sha256)
