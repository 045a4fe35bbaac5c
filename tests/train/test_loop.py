import functools
import math
import signal

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.harden.epoch_score import collapse
from pipeline.networks import memory_fit
from pipeline.networks.scores import accuracy_on
from pipeline.train import augmentation, loop
from tests.conftest import held_batches, make_block
from tests.narrow import NarrowResNet
from tests.small_networks import FullInBackward
from tests.train.conftest import CPU, Tiny, scores


def plain(batches):
    return augmentation.AugmentedBatches(batches._batches, "none", seed=0)


@pytest.mark.parametrize("best", [0.9, 2 / 3, 1 / 3])
def test_the_first_of_the_best_epochs_is_kept(batches, recipe, best):
    validate, seen = scores(0.2, best, best, 0.1)
    fitted = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU)
    assert fitted.best["epoch"] == 2
    assert [line["val_accuracy"] for line in fitted.history] == [
        0.2,
        round(best, 6),
        round(best, 6),
        0.1,
    ]
    assert all((fitted.state_dict[name] == seen[1][name]).all() for name in seen[1])
    assert any((seen[3][name] != seen[1][name]).any() for name in seen[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_what_can_be_learned_and_repeats_itself(batches, recipe, optimizer):
    recipe = recipe.model_copy(
        update={"epochs": 30, "optimizer": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.005}
    )
    block = make_block(64)
    fits = [
        loop.fit(Tiny(), plain(batches), accuracy_on(block), recipe, text="t", device=CPU)
        for _ in range(2)
    ]
    assert fits[0].history[-1]["train_accuracy"] > 0.95
    assert fits[0].history == fits[1].history


def test_a_loss_that_is_no_number_stops_with_advice(batches, recipe):
    recipe = recipe.model_copy(update={"lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(
        InputError,
        match=r"the loss is nan after epoch \d; lower its lr in params.yaml \(now 1e\+30\)",
    ):
        loop.fit(Tiny(), batches, lambda _: {"val_accuracy": 0.0}, recipe, text="t", device=CPU)


def test_the_loss_is_the_mean_over_images(batches, recipe):
    network = Tiny()
    fitted = loop.fit(
        network,
        batches,
        lambda _: {"val_accuracy": 0.0},
        recipe.model_copy(update={"epochs": 1, "lr": 1e-12}),
        text="t",
        device=CPU,
    )
    assert fitted.history[0]["train_loss"] == pytest.approx(math.log(3), abs=0.3)


def test_bf16_training_learns_like_fp32(recipe):
    block = make_block(64, size=32)
    batches = augmentation.AugmentedBatches(
        held_batches({"clean": block}, {"clean": 16}), "flip+crop", seed=0
    )
    histories = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = NarrowResNet(num_classes=3)
        settings = recipe.model_copy(update={"precision": precision, "lr": 0.05, "epochs": 6})
        fitted = loop.fit(
            network, plain(batches), accuracy_on(block), settings, text="t", device=CPU
        )
        assert all(
            tensor.dtype in (torch.float32, torch.int64) for tensor in fitted.state_dict.values()
        )
        histories[precision] = [epoch["train_loss"] for epoch in fitted.history]
    assert histories["bf16"][0] == pytest.approx(histories["fp32"][0], rel=0.15)
    assert all(losses[-1] < losses[0] / 2 for losses in histories.values())


def test_patience_ends_a_run_that_does_not_get_better(batches, recipe):
    validate, _ = scores(0.2, 0.9, 0.9, 0.5)
    fitted = loop.fit(
        Tiny(), batches, validate, recipe.model_copy(update={"patience": 1}), text="t", device=CPU
    )
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
    return NarrowResNet(num_classes=3)


@pytest.mark.parametrize(
    ("make", "changes", "stop_after"),
    [
        (Tiny, {}, 1),
        (Tiny, {"ema": 0.9}, 6),
        (Tiny, {"optimizer": "adamw", "lr": 0.001}, 8),
        (resnet, {"ema": 0.9}, 6),
    ],
)
def test_a_run_stopped_at_any_batch_gives_the_same_bytes(
    batches, recipe, tmp_path, monkeypatch, make, changes, stop_after
):
    block, settings = make_block(64), recipe.model_copy(update={"epochs": 3, **changes})
    part, validate = tmp_path / ".x.part", accuracy_on(block)
    whole = loop.fit(make(), batches, validate, settings, text="t", device=CPU)
    step, done = loop._Run.step, []

    def stopping_step(self, *arguments):
        step(self, *arguments)
        done.append(1)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "step", stopping_step)
    with pytest.raises(
        console.Interrupted,
        match=f"t: batch {(stop_after - 1) % 4 + 1} of epoch {(stop_after - 1) // 4 + 1} is done",
    ):
        loop.fit(make(), batches, validate, settings, text="t", device=CPU, part=part)
    monkeypatch.setattr(loop, "processor", lambda _: "another")
    again = loop.fit(make(), batches, validate, settings, text="t", device=CPU, part=part)
    assert len(done) == 12, "no batch is trained on twice"
    assert again.processors == [*whole.processors, "another"]
    assert again.history == whole.history
    assert all(
        torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items()
    )


class Greedy(Tiny):
    """A network that runs out of memory in its steps number `full`.

    It does so after BatchNorm has seen the batch, in the forward or the backward pass.
    """

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
def test_training_that_does_not_fit_goes_on_with_the_same_bytes(
    batches, recipe, where, monkeypatch, capsys
):
    console.say_once.cache_clear()
    moved, validate = [], accuracy_on(make_block(64))
    # On a CPU, torch's own `save_on_cpu` has nothing to move.
    saving = functools.partial(
        saved_tensors_hooks,
        lambda tensor: moved.append(tensor.shape) or tensor.clone(),
        lambda tensor: tensor,
    )
    monkeypatch.setattr(memory_fit, "save_on_cpu", saving)
    whole = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU)
    assert not moved
    network = Greedy(where, {3})
    fitted = loop.fit(network, batches, validate, recipe, text="t", device=CPU)
    assert network.passes == 4 * 4 + 1
    assert fitted.history == whole.history
    assert all(
        torch.equal(fitted.state_dict[name], tensor) for name, tensor in whole.state_dict.items()
    )
    assert len(moved) >= 3 * (4 * 4 - 2), "from then on every batch's activations are moved"
    said = capsys.readouterr().out
    assert said.count("training does not fit into the memory of cpu") == 1
    assert "continuing in the same batches, slower, with activations in main memory" in said


def test_training_that_does_not_fit_in_any_way_says_so(batches, recipe):
    with pytest.raises(torch.OutOfMemoryError):
        loop.fit(
            Greedy("backward", {1, 2}),
            batches,
            lambda _: {"val_accuracy": 0.0},
            recipe,
            text="t",
            device=CPU,
        )


def test_unreadable_unfinished_work_is_reported_and_restarted(batches, recipe, tmp_path, capsys):
    part = tmp_path / ".x.part"
    part.write_bytes(b"damaged")
    fitted = loop.fit(
        Tiny(), batches, scores(0.1, 0.2, 0.3, 0.4)[0], recipe, text="t", device=CPU, part=part
    )
    assert len(fitted.history) == 4
    assert "cannot be read; starting from the beginning" in capsys.readouterr().out


def test_one_changed_bit_of_unfinished_work_is_found(batches, recipe, tmp_path, capsys):
    part, validate = tmp_path / ".x.part", accuracy_on(make_block(64))
    whole = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU, part=part)
    content, kept = bytearray(part.read_bytes()), whole.state_dict["layers.4.weight"]
    content[content.index(kept.numpy().tobytes())] ^= 1
    part.write_bytes(content)
    again = loop.fit(Tiny(), batches, validate, recipe, text="t", device=CPU, part=part)
    assert "cannot be read; starting from the beginning" in capsys.readouterr().out
    assert torch.equal(again.state_dict["layers.4.weight"], kept)


def test_what_the_watcher_says_of_an_epoch_is_printed(batches, recipe, capsys):
    def watch(history):
        return f"{len(history)} epochs" if len(history) == 2 else ""

    loop.fit(
        Tiny(), batches, scores(0.1, 0.2, 0.3, 0.4)[0], recipe, text="t", device=CPU, watch=watch
    )
    assert capsys.readouterr().out == "t: 2 epochs\n"


def test_tf32_is_for_steps_and_not_for_validation(batches, recipe):
    seen = []

    class Noting(Tiny):
        def forward(self, images):
            if self.training:
                seen.append(torch.backends.cudnn.conv.fp32_precision)
            return super().forward(images)

    def validate(_):
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        return {"val_accuracy": 0.0}

    settings = recipe.model_copy(update={"epochs": 1})
    loop.fit(Noting(), batches, validate, settings, text="t", device=CPU)
    assert seen == ["tf32"] * 4 + ["ieee"]


def collapsing(*values):
    """Validation that gives these accuracies in turn, and a watcher that warns of a fall by half.

    The watcher sees the network's weights, too.
    """
    validate, seen = scores(*values)

    def watch(history):
        found = [row["val_accuracy"] for row in history]
        return f"collapse in epoch {history[-1]['epoch']}" if found[-1] < max(found) / 2 else ""

    return validate, watch, seen


class Attacked(augmentation.AugmentedBatches):
    """Batches that have a step size, which they note in every epoch."""

    def __init__(self, batches):
        super().__init__(batches._batches, "flip+crop", seed=0)
        self.state = {loop.ALPHA_SCALE: torch.ones(())}
        self.scales = []

    def epoch(self, number, first=0):
        self.scales.append(float(self.state[loop.ALPHA_SCALE]))
        return super().epoch(number, first)


def test_a_collapse_right_after_going_back_is_told(batches, recipe, capsys):
    pairs = iter([(0.4, 0.5), (0.05, 0.6), (0.05, 0.6), (0.05, 0.6)])

    def validate(_):
        pgd, fgsm = next(pairs)
        return {"val_accuracy": pgd, "val_pgd": pgd, "val_fgsm": fgsm}

    settings = recipe.model_copy(update={"epochs": 4})
    watch = functools.partial(collapse, n_images=500)
    loop.fit(Tiny(), Attacked(batches), validate, settings, text="t", device=CPU, watch=watch)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("t: collapse in epoch 2: ")
    assert "; training goes back to epoch 1" in first
    assert second.startswith("t: collapse in epoch 3: ")
    assert "goes back" not in second


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "lr": 0.001}, {"ema": 0.5}])
def test_training_goes_back_to_the_kept_epoch_once(batches, recipe, capsys, changes):
    validate, watch, seen = collapsing(0.8, 0.9, 0.1, 0.7, 0.1, 0.2)
    attacked, settings = Attacked(batches), recipe.model_copy(update={"epochs": 6, **changes})
    fitted = loop.fit(Tiny(), attacked, validate, settings, text="t", device=CPU, watch=watch)
    assert capsys.readouterr().out.splitlines() == [
        "t: collapse in epoch 3; training goes back to epoch 2, with alpha times 0.5",
        "t: collapse in epoch 5",
        "t: collapse in epoch 6",
    ]
    assert attacked.scales == [1.0] * 3 + [0.5] * 3
    assert fitted.collapsed == 3
    assert [row["alpha_scale"] for row in fitted.history] == [1.0] * 3 + [0.5] * 3
    assert fitted.best["epoch"] == 2
    name = "layers.4.weight"
    after, kept, lost = seen[3][name], seen[1][name], seen[2][name]
    assert (after - kept).norm() < (after - lost).norm()


def test_patience_counts_anew_where_training_goes_back(batches, recipe):
    validate, watch, _ = collapsing(0.9, 0.5, 0.1, 0.5, 0.5, 0.5)
    settings = recipe.model_copy(update={"epochs": 6, "patience": 3})
    fitted = loop.fit(
        Tiny(), Attacked(batches), validate, settings, text="t", device=CPU, watch=watch
    )
    assert (fitted.collapsed, len(fitted.history)) == (3, 6)


def test_nothing_goes_back_without_an_attack_or_epochs(batches, recipe, capsys):
    for attacked in (plain(batches), Attacked(batches)):
        validate, watch, _ = collapsing(0.8, 0.9, 0.8, 0.1)
        fitted = loop.fit(Tiny(), attacked, validate, recipe, text="t", device=CPU, watch=watch)
        assert capsys.readouterr().out == "t: collapse in epoch 4\n"
        assert fitted.collapsed == 0
        assert "alpha_scale" not in fitted.history[0]


@pytest.mark.parametrize("stop_after", [9, 12, 14])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_went_back_resumes_to_the_same_bytes(
    batches, recipe, tmp_path, monkeypatch, stop_after, ema
):
    settings = recipe.model_copy(update={"ema": ema})

    def fit(part=None, done=0):
        validate, watch, _ = collapsing(*(0.8, 0.2, 0.7, 0.9)[done:])
        return loop.fit(
            Tiny(), Attacked(batches), validate, settings, text="t", device=CPU, part=part,
            watch=watch,
        )  # fmt: skip

    whole = fit()
    assert whole.collapsed == 2
    step, done = loop._Run.step, []

    def stopping_step(self, *batch):
        step(self, *batch)
        done.append(1)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "step", stopping_step)
    with pytest.raises(console.Interrupted):
        fit(tmp_path / ".x.part")
    again = fit(tmp_path / ".x.part", (stop_after - 1) // 4)
    assert len(done) == 16
    assert (again.history, again.collapsed) == (whole.history, whole.collapsed)
    assert all(
        torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items()
    )
