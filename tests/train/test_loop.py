import math
import signal

import pytest
import torch
from torch import nn
from torchvision import models

from pipeline.base import console, files, unfinished
from pipeline.base.errors import InputError
from pipeline.networks import memory_fit
from pipeline.networks.precision import precision_for
from pipeline.networks.scores import accuracy_on
from pipeline.train import augmentation, loop
from tests.conftest import held_batches, make_block
from tests.small_networks import FullInBackward

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def batches():
    return augmentation.AugmentedBatches(held_batches({"clean": make_block(64)}, {"clean": 16}), "flip+crop", seed=0)


@pytest.fixture
def recipe(settings):
    return settings.clean.model_copy(update={"epochs": 4, "batch_size": 16, "warmup_epochs": 1.0})


def plain(batches):
    return augmentation.AugmentedBatches(batches._batches, "none", seed=0)


def scores(*values):
    """A validation that gives these accuracies in turn and notes the network's weights each time."""
    seen = []

    def validate(network):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"val_accuracy": values[len(seen) - 1]}

    return validate, seen


def test_the_first_of_the_best_epochs_is_kept(batches, recipe):
    validate, seen = scores(0.2, 0.9, 0.9, 0.5)
    fitted = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU)
    assert fitted.best["epoch"] == 2
    assert [line["val_accuracy"] for line in fitted.history] == [0.2, 0.9, 0.9, 0.5]
    assert all((fitted.state_dict[name] == seen[1][name]).all() for name in seen[1])
    assert any((seen[3][name] != seen[1][name]).any() for name in seen[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_what_can_be_learned_and_repeats_itself(batches, recipe, optimizer):
    recipe = recipe.model_copy(update={"epochs": 30, "optimizer": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.005})
    block = make_block(64)
    fits = [loop.fit(Tiny(), plain(batches), accuracy_on(block, 64), recipe, text="t", device=CPU) for _ in range(2)]
    assert fits[0].history[-1]["train_accuracy"] > 0.95
    assert fits[0].history == fits[1].history


def test_a_loss_that_is_no_number_stops_with_advice(batches, recipe):
    recipe = recipe.model_copy(update={"lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(InputError, match=r"the loss is nan after epoch \d; lower its lr in params.yaml \(now 1e\+30\)"):
        loop.fit(Tiny(), batches, lambda _: {"val_accuracy": 0.0}, recipe, text="t", device=CPU)


def test_learning_rate_schedules(recipe):
    cosine = [loop.learning_rate(epoch, recipe) for epoch in (0, 0.5, 1, 2.5, 4)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = recipe.model_copy(update={"schedule": "constant", "warmup_epochs": 0.0})
    assert {loop.learning_rate(epoch, constant) for epoch in (0, 1, 4)} == {1.0}


def test_the_loss_is_the_mean_over_images(batches, recipe):
    network = Tiny()
    fitted = loop.fit(
        network, batches, lambda _: {"val_accuracy": 0.0}, recipe.model_copy(update={"epochs": 1, "lr": 1e-12}), text="t", device=CPU
    )
    assert fitted.history[0]["train_loss"] == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.parametrize(("device", "multiplies", "expected"), [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "fp32")])
def test_auto_trains_in_bf16_only_where_it_was_measured_faster(monkeypatch, device, multiplies, expected):
    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: multiplies)
    assert precision_for("auto", torch.device(device)) == expected
    assert precision_for("bf16", torch.device(device)) == "bf16"


def test_bf16_training_learns_like_fp32(batches, recipe):
    block = make_block(64)
    histories = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = models.resnet18(num_classes=3)
        settings = recipe.model_copy(update={"precision": precision, "lr": 0.01, "epochs": 3})
        fitted = loop.fit(network, plain(batches), accuracy_on(block, 64), settings, text="t", device=CPU)
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in fitted.state_dict.values())
        histories[precision] = [epoch["train_loss"] for epoch in fitted.history]
    assert histories["bf16"][0] == pytest.approx(histories["fp32"][0], rel=0.15)
    assert all(losses[-1] < losses[0] / 2 for losses in histories.values())


def test_patience_ends_a_run_that_does_not_get_better(batches, recipe):
    validate, _ = scores(0.2, 0.9, 0.9, 0.5)
    fitted = loop.fit(Tiny(), batches, validate, recipe.model_copy(update={"patience": 1}), text="t", device=CPU)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3]
    assert fitted.best["epoch"] == 2


def test_the_average_of_the_weights_is_judged_and_kept(batches, recipe):
    validate, seen = scores(0.1, 0.2, 0.3, 0.4)
    network = Tiny()
    settings = recipe.model_copy(update={"ema": 0.5})
    weights = []
    step = torch.optim.SGD.step

    def recording(self, *arguments):
        step(self, *arguments)
        weights.append(network.layers[4].bias.detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", recording)
        fitted = loop.fit(network, batches, validate, settings, text="t", device=CPU)
    expected = weights[0]
    for new in weights[1:]:
        expected = expected.lerp(new, 0.5)
    assert torch.allclose(fitted.state_dict["layers.4.bias"], expected, atol=1e-7)
    assert (seen[-1]["layers.4.bias"] == fitted.state_dict["layers.4.bias"]).all()


def resnet():
    torch.manual_seed(0)
    return models.resnet18(num_classes=3)


@pytest.mark.parametrize(
    ("make", "changes", "stop_after"),
    [(Tiny, {}, 1), (Tiny, {"ema": 0.9}, 6), (Tiny, {"optimizer": "adamw", "lr": 0.001}, 8), (resnet, {"ema": 0.9}, 6)],
)
def test_a_run_that_was_stopped_at_any_batch_gives_the_same_bytes(batches, recipe, tmp_path, monkeypatch, make, changes, stop_after):
    block, settings = make_block(64), recipe.model_copy(update={"epochs": 3, **changes})
    part, validate = tmp_path / ".x.part", accuracy_on(block, 64)
    whole = loop.fit(make(), batches, validate, settings, text="t", device=CPU)
    step, done = loop._Run.step, []

    def stopping_step(self, *arguments):
        step(self, *arguments)
        done.append(1)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "step", stopping_step)
    with pytest.raises(console.Interrupted, match=f"t: batch {(stop_after - 1) % 4 + 1} of epoch {(stop_after - 1) // 4 + 1} is done"):
        loop.fit(make(), batches, validate, settings, text="t", device=CPU, part=part)
    again = loop.fit(make(), batches, validate, settings, text="t", device=CPU, part=part)
    assert len(done) == 12, "no batch is trained on twice"
    assert again.history == whole.history
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


class Greedy(Tiny):
    """Runs out of memory in its steps number `full`, after BatchNorm has seen the batch, on the way forward or backward."""

    def __init__(self, where, full):
        super().__init__()
        self.where, self.full, self.passes = where, full, 0

    def forward(self, images):
        logits = super().forward(images)
        self.passes += self.training
        if not self.training or self.passes not in self.full:
            return logits
        if self.where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FullInBackward.apply(logits)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_training_that_does_not_fit_goes_on_with_the_same_bytes(batches, recipe, where, monkeypatch, capsys):
    console.say_once.cache_clear()
    moved, validate = [], accuracy_on(make_block(64), 64)
    monkeypatch.setattr(memory_fit, "_to_main_memory", lambda tensor: moved.append(tensor.shape) or tensor.clone())
    whole = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU)
    assert not moved
    network = Greedy(where, {3})
    fitted = loop.fit(network, batches, validate, recipe, text="t", device=CPU)
    assert network.passes == 4 * 4 + 1
    assert fitted.history == whole.history
    assert all(torch.equal(fitted.state_dict[name], tensor) for name, tensor in whole.state_dict.items())
    assert len(moved) >= 3 * (4 * 4 - 2), "from then on every batch's activations are moved"
    said = capsys.readouterr().out
    assert said.count("training does not fit into the memory of cpu") == 1
    assert "going on in the same batches, slower, with activations in main memory" in said


def test_training_that_does_not_fit_in_any_way_says_so(batches, recipe):
    with pytest.raises(torch.OutOfMemoryError):
        loop.fit(Greedy("backward", {1, 2}), batches, lambda _: {"val_accuracy": 0.0}, recipe, text="t", device=CPU)


def test_unfinished_work_that_cannot_be_read_is_said_and_started_again(batches, recipe, tmp_path, capsys):
    part = tmp_path / ".x.part"
    part.write_bytes(b"damaged")
    fitted = loop.fit(Tiny(), batches, scores(0.1, 0.2, 0.3, 0.4)[0], recipe, text="t", device=CPU, part=part)
    assert len(fitted.history) == 4
    assert "cannot be read; starting from the beginning" in capsys.readouterr().out


def test_train_writes_the_best_epoch_and_keeps_what_it_takes_until_dvc_records_it(batches, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    also = []

    def train(validate):
        return loop.train(
            Tiny(),
            batches,
            validate,
            recipe,
            text="t",
            out=tmp_path / "m.pt",
            history=tmp_path / "h.csv",
            architecture="resnet18",
            class_names=["a", "b", "c"],
            provenance={"clean.digest": "d"},
            attack_passes=(100, 7),
            also_write=lambda checkpoint: also.append((checkpoint, len(list(tmp_path.glob(".*.part"))))),
            device=CPU,
        )

    done = train(scores(0.1, 0.5, 0.3, 0.2)[0])
    assert done.startswith(f"{tmp_path}/m.pt: epoch 2 of 4 kept, validation accuracy 0.5000")
    (kept,) = tmp_path.glob(".*.part")
    assert kept.name.endswith(unfinished.FINISHED)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != kept}
    assert sorted(written) == ["h.csv", "m.pt"]
    ((checkpoint, n_unfinished),) = also
    assert n_unfinished == 1, "unfinished work is given up last"
    assert torch.load(tmp_path / "m.pt", weights_only=True)["provenance"] == checkpoint.provenance
    assert checkpoint.provenance["best.epoch"] == 2
    assert checkpoint.provenance["attack_passes"] == 100 + 4 * 7
    assert files.sha256(tmp_path / "m.pt")

    def run_again():
        for name in written:  # as DVC does
            (tmp_path / name).unlink()
        validate, seen = scores(0.1, 0.5, 0.3, 0.2)
        train(validate)
        assert {name: (tmp_path / name).read_bytes() for name in written} == written
        return len(seen)

    assert run_again() == 0, "never recorded: nothing is done twice"
    assert "all 4 epochs were done before" in capsys.readouterr().out
    unfinished.RECORD.touch()
    assert run_again() == 4, "recorded: who asks for it again wants it again"


def test_collapse_is_said_once_when_pgd_accuracy_falls_and_fgsm_accuracy_does_not():
    history = [{"epoch": number, "val_pgd": pgd, "val_fgsm": fgsm} for number, pgd, fgsm in ((1, 0.3, 0.4), (2, 0.05, 0.9), (3, 0.0, 0.95))]
    assert loop.collapse(history[:1]) == ""
    assert loop.collapse(history[:2]).startswith(
        "collapse in epoch 2: held-out PGD accuracy fell from 0.300 to 0.050, FGSM accuracy is 0.900; epoch 1 is kept"
    )
    assert loop.collapse(history) == ""
    assert loop.collapse([{"epoch": 1, "val_accuracy": 0.1}]) == ""
    both_fall = [{"epoch": 1, "val_pgd": 0.3, "val_fgsm": 0.4}, {"epoch": 2, "val_pgd": 0.1, "val_fgsm": 0.2}]
    assert loop.collapse(both_fall) == ""
