import signal

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from pipeline import networks
from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.harden import moving_target, online_batches, refreshed_batches
from pipeline.harden.params import Finetune, Online
from pipeline.networks.precision import dtype_for
from pipeline.train import loop
from tests.conftest import held_batches, make_block, write_set
from tests.narrow import NarrowResNet
from tests.train.test_loop import Tiny

CPU = torch.device("cpu")
EPS = 8 / 255


def adversary(**changes):
    entry = {
        "eps": "8/255",
        "eps_per": "image",
        "alpha": "eps/4",
        "steps": 2,
        "random_start": True,
        "loss": "cross_entropy",
    }
    return {**entry, "target": "none", "against": "self", **changes}


def online(settings, changes=None, **attack):
    entry = {
        **settings.clean.model_dump(),
        "batch_size": 16,
        "start": "clean",
        "clean_weight": 0.5,
        "adv_weight": 0.5,
        "best_on": "robust",
    }
    return Online.model_validate({**entry, "adversary": adversary(**attack), **(changes or {})})


def clean_batches():
    return held_batches({"clean": make_block(64)}, {"clean": 16})


def made(recipe, network, *, fixed=False, number=0):
    batches = online_batches.OnlineBatches(
        clean_batches(), recipe, moving_target.Target(network, 16, torch.float32), fixed=fixed
    )
    return batches, list(batches.epoch(number))


def test_online_batches_hold_clean_images_and_attacks_within_eps(settings):
    batches, epoch = made(online(settings), Tiny())
    assert len(batches) == len(epoch) == 4
    assert batches.passes(3) == 64 * 2 * 3
    for (images, labels, shares), (clean, clean_labels, _) in zip(
        epoch, clean_batches().epoch(0), strict=True
    ):
        assert torch.equal(images[:16], clean)
        assert 0 < (images[16:] - clean).abs().max() <= EPS + 1e-6
        assert labels.tolist() == clean_labels.tolist() * 2
        assert shares[:16].sum().item() == pytest.approx(0.5)
        assert shares.sum().item() == pytest.approx(1)


def test_the_shares_of_the_loss_are_the_recipes_weights(settings):
    images, _, shares = made(online(settings, {"clean_weight": 0.0, "adv_weight": 0.3}), Tiny())[1][
        0
    ]
    assert len(images) == 16, "adversarial images alone"
    assert shares.sum().item() == pytest.approx(0.3)
    images, _, shares = made(online(settings, {"clean_weight": 1.0, "adv_weight": 0.25}), Tiny())[
        1
    ][0]
    assert shares.view(2, 16).sum(1).tolist() == pytest.approx([1.0, 0.25])


def test_a_batch_is_the_same_when_an_epoch_starts_in_its_middle(settings):
    recipe, target = (
        online(settings, {"augment": "flip+crop"}),
        moving_target.Target(Tiny(), 32, torch.float32),
    )
    batches = online_batches.OnlineBatches(clean_batches(), recipe, target, fixed=False)
    assert torch.equal(list(batches.epoch(3))[2][0], next(batches.epoch(3, 2))[0])


@pytest.mark.parametrize(
    ("attack", "theirs"),
    [
        ({"steps": 1, "alpha": "8/255"}, lambda network: torchattacks.FGSM(network, eps=EPS)),
        (
            {"steps": 3},
            lambda network: torchattacks.PGD(
                network, eps=EPS, alpha=EPS / 4, steps=3, random_start=False
            ),
        ),
        (
            {"steps": 2, "alpha": "eps/steps"},
            lambda network: torchattacks.BIM(network, eps=EPS, alpha=EPS / 2, steps=2),
        ),
    ],
)
def test_adversary_without_random_start_matches_torchattacks(settings, attack, theirs):
    network = Tiny()
    for images, labels, _ in made(online(settings, random_start=False, **attack), network)[1]:
        expected = theirs(networks.frozen_copy(network))(images[:16], labels[:16])
        assert torch.allclose(images[16:], expected, atol=1e-6)


def test_a_random_start_with_one_step_is_not_the_image_itself(settings):
    images, _, _ = made(online(settings, steps=1, alpha="1/255"), Tiny())[1][0]
    moved = (images[16:] - images[:16]).abs()
    assert len(torch.unique((moved * 255).round(decimals=2))) > 50, "uniform noise, then one step"


def test_targets_and_losses_give_different_attacks(settings):
    network = Tiny()
    logits = {}
    for name, attack in {
        "least": {"target": "least_likely"},
        "away": {},
        "margin": {"loss": "margin"},
    }.items():
        recipe = online(settings, steps=5, random_start=False, **attack)
        images, labels, _ = made(recipe, network)[1][0]
        logits[name] = network.eval()(images)
    least = logits["least"][:16].scatter(1, labels[:16, None], torch.inf).argmin(1)
    assert (
        logits["least"][16:].gather(1, least[:, None])
        > logits["least"][:16].gather(1, least[:, None])
    ).float().mean() > 0.9
    assert not torch.equal(logits["away"][16:], logits["margin"][16:])


def test_the_least_likely_class_is_never_the_label(settings, monkeypatch):
    recipe, aims = online(settings, target="least_likely", steps=1, random_start=False), []
    batches, _ = made(recipe, Tiny())
    ascent = batches._ascent
    monkeypatch.setattr(
        batches, "_ascent", lambda *given, **named: aims.append(given[3]) or ascent(*given, **named)
    )
    logits = torch.tensor([-50.0, 0.0, 50.0])  # class 0 is always the least likely
    network = lambda images: images.flatten(1)[:, :3] * 0 + logits  # noqa: E731
    monkeypatch.setattr(batches._target, "now", lambda: network)
    for (_, labels, _), aim in zip(batches.epoch(1), aims, strict=False):
        own = labels[: len(aim)]
        assert (aim != own).all()
        assert (aim == torch.where(own == 0, 1, 0)).all()


def sizes_of(recipe, number=0):
    """The largest change of each adversarial image, batch by batch.

    One big step reaches its eps, or a pixel's end of the range.
    """
    return [
        (images[16:] - images[:16]).abs().amax((1, 2, 3))
        for images, _, _ in made(recipe, Tiny(), number=number)[1]
    ]


@pytest.mark.parametrize("per", ["image", "batch", "epoch"])
def test_eps_is_drawn_per_image_batch_or_epoch(settings, per):
    spread = {"normal": ["8/255", "4/255"], "within": ["1/255", "16/255"]}
    sizes = sizes_of(
        online(settings, eps=spread, eps_per=per, steps=1, alpha="eps/1", random_start=False)
    )
    drawn = [len(torch.unique(batch.mul(1e4).round())) for batch in sizes]
    assert all(
        (batch >= 1 / 255 - 1e-6).all() and (batch <= 16 / 255 + 1e-6).all() for batch in sizes
    )
    assert (min(drawn) > 8) == (per == "image")
    assert (len({round(float(batch.max()), 5) for batch in sizes}) == 1) == (per == "epoch")
    if per == "epoch":
        recipe = online(
            settings, eps=spread, eps_per=per, steps=1, alpha="eps/1", random_start=False
        )
        assert sizes_of(recipe, 1)[0].max() != sizes[0].max()


def test_attacks_follow_the_training_network_unless_fixed(settings):
    for fixed in (False, True):
        torch.manual_seed(0)
        network = NarrowResNet(num_classes=3)
        recipe = online(settings, random_start=False)
        batches = online_batches.OnlineBatches(
            clean_batches(), recipe, moving_target.Target(network, 16, torch.float32), fixed=fixed
        )
        before = next(batches.epoch(0))[0]
        with torch.no_grad():
            network.fc.weight.neg_()
        assert torch.equal(before, next(batches.epoch(0))[0]) == fixed


def test_a_target_is_the_network_in_evaluation_mode():
    torch.manual_seed(0)
    network = NarrowResNet(num_classes=3).train()
    target = moving_target.Target(network, 32, torch.float32)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(0.01 if tensor.is_floating_point() else 1)
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(target.now()(images), networks.frozen_copy(network)(images), atol=1e-3)
    assert network.training
    assert all(tensor.requires_grad for tensor in network.parameters())


@pytest.mark.parametrize(
    ("precision", "multiplies", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_attacks_in_training_use_the_precision_asked_for(
    monkeypatch, precision, multiplies, expected
):
    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: multiplies)
    assert dtype_for(precision, CPU) == expected


def streams(eps=EPS):
    clean = make_block(64)
    stored = {"clean": clean}
    for name in ("fgsm", "pgd"):
        noise = np.random.default_rng(len(name)).integers(-4, 5, clean.images.shape)
        moved = np.clip(clean.images + noise, 0, 255).astype(np.uint8)
        stored[name] = type(clean)(
            **{**clean.datasets, "images": moved},
            eps=np.full(64, eps, np.float32),
            fooled=np.zeros(64, bool),
        )
    return stored


def training(eps=EPS):
    """The training rows of the streams: 48."""
    return {name: block.select(block.split == 0) for name, block in streams(eps).items()}


@pytest.fixture
def refreshed(settings, tmp_path):
    def make(network, *, augment="none", eps=EPS, **changes):
        sets = {name: write_set(tmp_path / name, block) for name, block in streams(eps).items()}
        refresh = {"every": 1, "steps": 2, "alpha": "eps/4", "warm_start": True, **changes}
        update = {
            **settings.finetuned["robust"].model_dump(),
            "batch_size": 16,
            "augment": augment,
            "refresh": refresh,
        }
        target = moving_target.Target(network, 32, torch.float32)
        return refreshed_batches.RefreshedBatches(
            sets, Finetune.model_validate(update), target, CPU, tmp_path
        )

    return make


class Gradient(nn.Module):
    """A network with the same input gradient everywhere, so that every step goes the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        total = self.weight * images.flatten(1).mean(1)
        return torch.stack([-total, torch.zeros_like(total), torch.zeros_like(total)], 1)


def test_refreshing_continues_from_stored_images_and_stores_them(refreshed):
    before, batches = training(), refreshed(Gradient())
    assert len(batches) == 6
    assert batches.passes(1) == 2 * 48
    for images, labels, shares in batches.epoch(0):
        assert shares.sum().item() == pytest.approx(1)
        assert len(images) == len(labels) == 16
    assert torch.equal(batches.working_copy("clean"), torch.from_numpy(before["clean"].images)), (
        "clean images stay"
    )
    for name in ("fgsm", "pgd"):
        old, clean = before[name].images.astype(int), before["clean"].images.astype(int)
        new = batches.working_copy(name).numpy().astype(int)
        drawn = (new != old).any((1, 2, 3))
        assert drawn.sum() == 24, "half of the stream is drawn in one epoch"
        assert np.abs(new - clean).max() <= 8
        down = before[name].labels[drawn] == 0
        # Class 0 loses by brighter pixels, the others by darker ones. Each pixel moves two steps of
        # 2 levels each from where the stored one was.
        sign = np.where(down, 1, -1).reshape(-1, 1, 1, 1)
        expected = np.clip(
            np.clip(old[drawn] + 4 * sign, clean[drawn] - 8, clean[drawn] + 8), 0, 255
        )
        assert np.abs(new[drawn] - expected).max() <= 1
    batches.epoch(1)
    assert batches.state["images"] is batches._images.images


def test_cold_starts_ignore_stored_images_and_epochs_may_rest(refreshed):
    cold, warm = (refreshed(Gradient(), warm_start=flag, steps=1) for flag in (False, True))
    for batches in (cold, warm):
        list(batches.epoch(0))
    assert not torch.equal(cold.working_copy("pgd"), warm.working_copy("pgd"))
    resting = refreshed(Gradient(), every=2)
    before = resting.working_copy("pgd").clone()
    list(resting.epoch(1))
    assert torch.equal(resting.working_copy("pgd"), before)
    list(resting.epoch(2))
    assert not torch.equal(resting.working_copy("pgd"), before)
    assert [resting.passes(epochs) for epochs in (1, 2, 3)] == [96, 96, 192]


def test_an_image_that_is_twice_in_a_batch_is_stored_once():
    rows = torch.tensor([5, 2, 5, 7, 2])
    assert refreshed_batches._last_of_each(rows).tolist() == [2, 4, 2, 3, 4]


def test_moved_images_are_refreshed_in_place_within_the_ball(refreshed):
    batches, clean = (
        refreshed(Tiny(), augment="flip+crop", alpha="eps/1"),
        training()["clean"].images.astype(int),
    )
    for number in range(4):
        for images, _, _ in batches.epoch(number):
            assert images.min() >= 0
            assert images.max() <= 1
    for name in ("fgsm", "pgd"):
        assert np.abs(batches.working_copy(name).numpy().astype(int) - clean).max() <= 8


def test_rows_that_do_not_belong_together_are_refused(settings, tmp_path):
    stored = streams()
    stored["pgd"] = type(stored["pgd"])(
        **{**stored["pgd"].datasets, "ids": stored["pgd"].ids[::-1].copy()}
    )
    sets = {name: write_set(tmp_path / name, block) for name, block in stored.items()}
    recipe = Finetune.model_validate(
        {
            **settings.finetuned["robust"].model_dump(),
            "batch_size": 16,
            "refresh": {"every": 1, "steps": 1, "alpha": "eps/2", "warm_start": True},
        }
    )
    with pytest.raises(InputError, match="pgd: its training rows are not those of the clean set"):
        refreshed_batches.RefreshedBatches(
            sets, recipe, moving_target.Target(Tiny(), 32, torch.float32), CPU, tmp_path
        )


def test_a_stopped_refreshed_training_resumes_to_the_same_bytes(
    refreshed, settings, tmp_path, monkeypatch
):
    recipe = settings.finetuned["robust"].model_copy(
        update={"epochs": 2, "batch_size": 16, "warmup_epochs": 0.0}
    )

    def fit(part=None):
        network = Tiny()
        batches = refreshed(network, augment="flip")
        fitted = loop.fit(
            network,
            batches,
            lambda _: {"val_accuracy": 0.5},
            recipe,
            text="t",
            device=CPU,
            part=part,
        )
        return fitted.history, batches.working_copy("pgd").clone()

    history, images = fit()
    step, done = loop._Run.step, []

    def stopping_step(self, *arguments):
        step(self, *arguments)
        done.append(1)
        if len(done) == 8:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "step", stopping_step)
    with pytest.raises(console.Interrupted, match="t: batch 2 of epoch 2 is done"):
        fit(tmp_path / ".x.part")
    again, resumed = fit(tmp_path / ".x.part")
    assert len(done) == 12, "no batch is trained on twice"
    assert again == history
    assert torch.equal(resumed, images)


def regularised_epoch(refreshed, number=0, **changes):
    batches = refreshed(Gradient(), steps=1, **changes)
    return batches, list(batches.epoch(number))


@pytest.mark.parametrize("warm", [True, False])
def test_refreshed_images_are_compared_with_their_starts(refreshed, warm):
    _, plain = regularised_epoch(refreshed, warm_start=warm)
    _, epoch = regularised_epoch(refreshed, warm_start=warm, regularise=5.0)
    for (images, labels, shares), paired in zip(plain, epoch, strict=True):
        all_images, all_labels, all_shares, weights, partners = paired
        adversarial = weights > 0
        n = len(labels)
        assert torch.equal(all_images[:n], images)
        assert len(all_images) == n + 8
        assert torch.equal(all_shares, torch.cat([shares, torch.zeros(8)]))
        assert torch.equal(weights[adversarial], torch.full((8,), 5.0 / n))
        assert torch.equal(all_labels, torch.cat([labels, torch.full((8,), -100)]))
        # One step of a fourth of eps leads from the start to the image, or the ball ends before.
        moved = (all_images[adversarial] - all_images[partners[adversarial]]).abs()
        assert 0 < moved.max() <= EPS / 4 + 1e-6


def test_epochs_that_rest_compare_no_starts(refreshed):
    _, epoch = regularised_epoch(refreshed, number=1, every=2, regularise=5.0)
    assert {len(batch) for batch in epoch} == {3}


@pytest.mark.parametrize("number", [0, 1])
def test_trades_compares_refreshed_images_with_their_originals(refreshed, number):
    batches = refreshed(Tiny(), augment="flip+crop", every=2)
    trades = {**batches._recipe.model_dump(), "loss": "trades", "beta": 6.0}
    batches._recipe = Finetune.model_validate(trades)
    for images, labels, shares, weights, partners in batches.epoch(number):
        adversarial = weights > 0
        assert torch.equal(weights[adversarial], torch.full((8,), 6.0 / 16))
        assert shares[adversarial].tolist() == [0.0] * 8
        assert shares.sum().item() == pytest.approx(1)
        assert torch.equal(labels[partners], labels)
        distance = (images - images[partners]).abs().amax((1, 2, 3))
        assert (distance > 0).tolist() == adversarial.tolist()
        assert distance.max() <= EPS + 1e-6


def test_trades_compares_online_images_with_the_clean_ones(settings):
    changes = {"clean_weight": 0.0, "adv_weight": 0.5, "loss": "trades", "beta": 4.0}
    for images, labels, shares, weights, partners in made(online(settings, changes), Tiny())[1]:
        assert len(images) == 32
        assert partners.tolist() == [*range(16, 32), *range(16, 32)]
        assert shares[:16].sum() == 0
        assert shares.sum().item() == pytest.approx(0.5)
        assert weights.sum().item() == pytest.approx(0.5 * 4)
        assert torch.equal(labels[:16], labels[16:])
        assert 0 < (images[:16] - images[16:]).abs().max() <= EPS + 1e-6


def test_a_reset_replaces_all_perturbations_by_noise(refreshed):
    clean = training()["clean"].images.astype(int)
    batches = refreshed(Gradient(), reset=2)
    before = {name: batches.working_copy(name).clone() for name in ("clean", "fgsm", "pgd")}
    batches._forget(2)
    assert torch.equal(batches.working_copy("clean"), before["clean"])
    for name in ("fgsm", "pgd"):
        new = batches.working_copy(name)
        assert (new != before[name]).any(3).any(2).any(1).all()
        assert 6 < np.abs(new.numpy().astype(int) - clean).max() <= 8
        assert len(torch.unique(new.int() - before["clean"].int())) == 17


def test_perturbations_are_reset_after_so_many_epochs(refreshed, monkeypatch):
    batches, forgotten = refreshed(Gradient(), reset=2), []
    monkeypatch.setattr(batches, "_forget", forgotten.append)
    for number in range(5):
        next(batches.epoch(number))
        next(batches.epoch(number, 1))
    assert forgotten == [2, 4]


def test_noise_reaches_further_than_eps_and_is_kept(settings):
    recipe = online(settings, noise=2.0, steps=1, alpha="eps/1")
    for images, _, _ in made(recipe, Gradient())[1]:
        inside = (images[16:] > 0) & (images[16:] < 1)
        moved = (images[16:] - images[:16])[inside]
        assert moved.abs().max() <= 3 * EPS + 1e-6
        assert (moved.abs() > 2 * EPS).float().mean() == pytest.approx(0.25, abs=0.05)


def test_attacks_take_smaller_steps_after_a_collapse(settings, refreshed):
    for scale in (1.0, 0.5):
        recipe = online(settings, steps=1, alpha="eps/2", random_start=False)
        batches, _ = made(recipe, Gradient())
        batches.state["alpha_scale"].fill_(scale)
        images, _, _ = next(batches.epoch(0))
        assert (images[16:] - images[:16]).abs().max() == pytest.approx(scale * EPS / 2, rel=1e-3)
        stored = refreshed(Gradient(), steps=1, regularise=1.0)
        stored.state["alpha_scale"].fill_(scale)
        images, _, _, _, partners = next(stored.epoch(0))
        moved = (images - images[partners]).abs().max()
        assert moved == pytest.approx(scale * EPS / 4, rel=1e-3)
