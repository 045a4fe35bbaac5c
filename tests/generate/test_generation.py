import dataclasses
import json
import math
import shutil
import signal
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import torchattacks
from torchvision import models

from pipeline import attacks, networks
from pipeline.attacks.params import Generate
from pipeline.base import console, seeds, store
from pipeline.base.errors import InputError
from pipeline.cluster.here import Here
from pipeline.generate import generation
from pipeline.generate.attacker import Attacking
from pipeline.harden import refreshed_sets
from pipeline.harden.params import Refresh
from pipeline.networks import matrix_products
from tests.conftest import FGSM, PGD, attack_spec, make_block, write_set
from tests.narrow import NarrowResNet

CPU = torch.device("cpu")
SETTINGS = Generate(batch_size=8, precision="fp32", seed=7)


def generate(clean, network, out, spec=PGD, settings=SETTINGS):
    return generation.generate(
        clean,
        network,
        "model-hash",
        attack_spec(**spec),
        settings,
        name="pgd",
        out=out,
        workers=Here(CPU),
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("sets")
    clean = write_set(folder / "clean", make_block(40))
    return clean, generate(clean, network, folder / "pgd")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return NarrowResNet(num_classes=3)


def test_all_rows_are_there_within_eps_and_changed(sets):
    clean, attacked = (store.join(list(images.blocks())) for images in sets)
    for name in ("labels", "ids", "split"):
        assert (clean.datasets[name] == attacked.datasets[name]).all()
    distance = np.abs(clean.images.astype(int) - attacked.images.astype(int))
    assert distance.max() == 8
    assert (distance.max(axis=(1, 2, 3)) > 0).all()
    assert np.allclose(attacked.eps, 8 / 255)


def test_stored_images_equal_torchattacks_own_after_rounding(sets, network):
    clean, attacked = (store.join(list(images.blocks())) for images in sets)
    for start in (0, 8, 16, 24, 32):  # shards hold 16 rows, batches 8
        rows = slice(start, start + 8)
        images, labels = torch.from_numpy(clean.images[rows]), torch.from_numpy(clean.labels[rows])
        torch.manual_seed(seeds.batch_seed(SETTINGS.seed, start))
        theirs = torchattacks.PGD(
            networks.frozen_copy(network), eps=8 / 255, alpha=2 / 255, steps=3
        )(images / 255, labels)
        assert (attacked.images[rows] == (theirs * 255).round().numpy()).all()


def test_fooled_tells_what_the_source_model_gets_wrong(sets, network):
    attacked = store.join(list(sets[1].blocks()))
    with torch.inference_mode():
        wrong = (
            network.eval()(torch.from_numpy(attacked.images) / 255).argmax(1).numpy()
            != attacked.labels
        )
    assert (wrong == attacked.fooled).all()


def test_attributes_tell_how_the_set_was_made(sets):
    clean, attacked = sets
    expected = {
        "kind": "adversarial",
        "clean.digest": clean.digest,
        "model.sha256": "model-hash",
        "attack": "pgd",
        "attack.class": "PGD",
        "attack.eps": 8 / 255,
        "attack.alpha": 2 / 255,
        "attack.steps": 3,
        "attack.random_start": True,
        "threat_model": "Linf",
        "batch_size": 8,
        "seed": 7,
        "device": "cpu",
        "rows": 40,
    }
    assert expected.items() <= attacked.attributes.items()
    with h5py.File(attacked.path / "00001.h5", "r") as file:
        assert file.attrs["attack.steps"] == 3
        assert file.attrs["rows.start"] == 16
        assert file.attrs["versions.torchattacks"] == "3.5.1"


def test_requested_and_stored_eps_are_both_recorded(sets, network, tmp_path):
    attacked = generate(sets[0], network, tmp_path / "x", spec={**FGSM, "eps": 0.03})
    assert attacked.attributes["attack.eps"] == 0.03
    assert attacked.attributes["eps.stored"] == 7 / 255


def test_a_resumed_set_is_the_uninterrupted_one(sets, network, tmp_path, monkeypatch):
    clean, whole = sets
    write, written = store.Writer.write, []

    def interrupted(self, start, block):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, block)

    monkeypatch.setattr(store.Writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(clean, network, tmp_path / "pgd")
    assert not (tmp_path / "pgd").exists()
    monkeypatch.setattr(
        store.Writer,
        "write",
        lambda self, start, block: (written.append(start), write(self, start, block)),
    )
    row_bytes = math.prod(clean.image_shape) + store.ROW_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * row_bytes))
    with pytest.raises(InputError, match="other: storing 40 images needs 1 MiB, and the disk"):
        generate(clean, network, tmp_path / "other")
    resumed = generate(clean, network, tmp_path / "pgd")
    assert written == [0, 16, 32], "no shard is made twice"
    for shard in sorted(whole.path.iterdir()):
        assert shard.read_bytes() == (resumed.path / shard.name).read_bytes()


def stop_in_batch(n, number, monkeypatch):
    """Send a signal in the nth batch; return a list that grows with every attacked batch."""
    perturb, attacked = attacks.perturb, []

    def stopping(*arguments):
        attacked.append(1)
        if len(attacked) == n:
            signal.raise_signal(number)
        return perturb(*arguments)

    monkeypatch.setattr(attacks, "perturb", stopping)
    return attacked


@pytest.mark.parametrize(
    ("stop_after", "images_done", "again"), [(1, 0, 1), (2, 16, 0), (3, 16, 1), (5, 40, 0)]
)  # shards hold 16 rows, batches 8
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_set_stopped_at_any_batch_is_the_uninterrupted_one(
    sets, network, tmp_path, monkeypatch, stop_after, images_done, again, number
):
    clean, whole = sets
    attacked = stop_in_batch(stop_after, number, monkeypatch)
    with pytest.raises(
        console.Interrupted, match=f"^attack with pgd: {images_done} of 40 images are done$"
    ):
        generate(clean, network, tmp_path / "pgd")
    assert not (tmp_path / "pgd").exists()
    resumed = generate(clean, network, tmp_path / "pgd")
    assert len(attacked) == 5 + again, "only a shard that was not whole is attacked twice"
    assert {path.name: path.read_bytes() for path in resumed.path.iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }


def test_an_error_of_the_writing_thread_leaves_no_set(sets, network, tmp_path, monkeypatch):
    def full(self, start, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        generate(sets[0], network, tmp_path / "pgd")
    assert not (tmp_path / "pgd").exists()


def test_batches_too_large_for_the_device_give_the_same_set(
    sets, network, tmp_path, monkeypatch, capsys
):
    forward = type(network).forward

    def narrow(self, images):
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(type(network), "forward", narrow)
    clean, whole = sets
    parts = generate(clean, network, tmp_path / "pgd")
    assert "8 images at once do not fit into the memory of cpu" in capsys.readouterr().out
    distance = (
        store.join(list(parts.blocks())).images.astype(int)
        - store.join(list(whole.blocks())).images
    )
    assert (distance != 0).mean() < 1e-3, (
        "up to rounding: products of other sizes may add in another order"
    )


def test_a_set_of_another_origin_is_refused(sets):
    clean, attacked = sets
    spec = attack_spec(**PGD)
    attacked.expect(attacks.identity(clean, "model-hash", "pgd", spec, SETTINGS), "never seen")
    other_clean = sets[1]
    for identity, key in [
        (attacks.identity(clean, "other-model", "pgd", spec, SETTINGS), "model.sha256"),
        (attacks.identity(other_clean, "model-hash", "pgd", spec, SETTINGS), "clean.digest"),
        (
            attacks.identity(
                clean, "model-hash", "pgd", attack_spec(**{**PGD, "steps": 4}), SETTINGS
            ),
            "attack.steps",
        ),
        (
            attacks.identity(
                clean, "model-hash", "pgd", spec, Generate(batch_size=8, precision="fp32", seed=8)
            ),
            "seed",
        ),
    ]:
        with pytest.raises(InputError, match=f"another origin: {key}: expected"):
            attacked.expect(identity, "another origin")


def in_precision(precision):
    return SETTINGS.model_copy(update={"precision": precision})


def test_bf16_attacks_keep_the_bound_and_are_recorded(sets, network, tmp_path):
    clean, exact = sets
    fast = generate(clean, network, tmp_path / "x", settings=in_precision("bf16"))
    assert fast.attributes["precision"] == "bf16"
    assert exact.attributes["precision"] == "fp32"
    images, originals = (store.join(list(each.blocks())) for each in (fast, clean))
    assert np.abs(images.images.astype(int) - originals.images.astype(int)).max() == 8
    with torch.inference_mode():
        wrong = (
            network.eval()(torch.from_numpy(images.images) / 255).argmax(1).numpy() != images.labels
        )
    assert (wrong == images.fooled).all(), "fooled is told by the exact network"


def trying_both(network):
    return Attacking(
        network=network.eval(),
        image_size=16,
        n_classes=3,
        precision="auto",
        spec=attack_spec(**PGD),
        settings=in_precision("auto"),
    )


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_takes_bf16_only_where_the_device_multiplies_it(
    sets, network, monkeypatch, multiplies
):
    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: multiplies)
    sample = generation.trial_sample(sets[0], 0)
    choice = generation.choose(trying_both(network), sample, CPU)
    assert choice.precision == ("bf16" if multiplies else "fp32")
    assert choice.trial.startswith("bf16 attacks fool" if multiplies else "none")


@pytest.mark.parametrize(("n_left", "tried"), [(6, ["bf16"]), (7, ["bf16", "fp32"])])
def test_fp32_is_tried_only_where_it_may_be_better(sets, network, monkeypatch, n_left, tried):
    """Of 256 images, 6 of 6 in favour of fp32 may be chance, 7 of 7 are not."""
    by_bf16 = np.arange(256) >= n_left
    found = {"bf16": by_bf16, "fp32": np.ones(256, dtype=bool)}
    precisions = []

    def fooled(job, *_):
        precisions.append(job.precision)
        return found[job.precision]

    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr(generation, "_fooled", fooled)
    choice = generation.choose(trying_both(network), range(256), CPU)
    assert precisions == tried
    assert choice.precision == tried[-1]
    if n_left == 6:
        assert choice.trial == (
            "bf16 attacks fool 250 of 256 images, too many for fp32 ones to be better"
        )


def test_the_trial_takes_images_of_all_classes_and_shards(tmp_path):
    labels = np.repeat(np.arange(3), 200)  # sorted, as folders of images are
    block = dataclasses.replace(make_block(600), labels=labels)
    clean = write_set(tmp_path / "clean", block)
    sample = generation.trial_sample(clean, 0)
    assert len(sample) == generation.SAMPLE[0]
    assert len(set(sample.ids)) == len(sample)
    assert np.bincount(sample.labels).min() > 60
    assert (sample.ids == generation.trial_sample(clean, 0).ids).all()
    assert (sample.ids != generation.trial_sample(clean, 1).ids).any()


def test_the_trial_attacks_no_larger_batches_than_the_set(sets, network, monkeypatch):
    sizes, perturb = [], attacks.perturb

    def noted(attack, images, labels, seed):
        sizes.append(len(images))
        return perturb(attack, images, labels, seed)

    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr(attacks, "perturb", noted)
    sample = generation.trial_sample(sets[0], 0)
    generation.choose(trying_both(network), sample, CPU)
    assert sum(sizes) == 2 * len(sample)
    assert max(sizes) == SETTINGS.batch_size < len(sample)


def test_auto_drops_bf16_where_its_attacks_fool_less(sets, monkeypatch, capsys):
    torch.manual_seed(0)
    network = models.resnet18(num_classes=3).eval()  # easier to fool than a narrow one

    class Useless(matrix_products.Frozen):
        def forward(self, images):
            return super().forward(images) * (self.dtype == torch.float32)

    monkeypatch.setattr("pipeline.networks.precision.multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr(matrix_products, "Frozen", Useless)
    clean = sets[0]
    labels = networks.predict(network, store.join(list(clean.blocks())).images, 40)
    right = write_set(
        clean.path.parent / "right",
        store.Block(**{**store.join(list(clean.blocks())).datasets, "labels": labels}),
    )
    strong = attack_spec(**{**PGD, "eps": 0.3, "alpha": 0.1, "random_start": False})
    generation.generate(
        right,
        network,
        "hash",
        strong,
        in_precision("auto"),
        name="pgd",
        out=clean.path.parent / "strong",
        workers=Here(CPU),
    )
    attributes = store.ImageSet(clean.path.parent / "strong").attributes
    assert attributes["precision"] == "fp32"
    assert "continuing with fp32" in capsys.readouterr().out


def test_each_image_may_have_its_own_eps(sets, network, tmp_path):
    clean = sets[0]
    spread = {"normal": ["8/255", "4/255"], "within": ["2/255", "16/255"]}
    own = {"eps": spread, "alpha": "eps/2", "random_start": False}
    attacked = generate(clean, network, tmp_path / "x", spec={**PGD, **own})
    before, after = (store.join(list(images.blocks())) for images in (clean, attacked))
    levels = np.round(after.eps * 255).astype(int)
    assert len(set(levels)) > 5
    assert levels.min() >= 2
    assert levels.max() <= 16
    again = generation.attacked_again(
        attacked,
        clean.block(1).select(np.arange(16) >= 8),
        24,
        network,
        attack_spec(**{**PGD, **own}),
        SETTINGS,
        device=CPU,
    )
    assert (again.images == attacked.block(1).images[8:]).all()
    distance = np.abs(after.images.astype(int) - before.images.astype(int)).max((1, 2, 3))
    assert (distance == levels).mean() > 0.9, "three steps of half an eps reach it"
    assert (distance <= levels).all()
    assert json.loads(str(attacked.attributes["attack.eps"])) == {
        "normal": [8 / 255, 4 / 255],
        "within": [2 / 255, 16 / 255],
    }
    assert attacked.attributes["eps.stored"] == 16 / 255
    assert attacked.attributes["attack.alpha"] == "eps/2"
    again = generate(clean, network, tmp_path / "y", spec={**PGD, **own})
    assert again.digest == attacked.digest


def test_refreshed_sets_record_their_origin_and_keep_validation(sets, network, tmp_path):
    cached = sets[1]
    block = store.join(list(cached.blocks()))
    trained = block.split == 0
    new = torch.from_numpy(255 - block.images[trained])
    refresh = Refresh(every=1, steps=2, alpha="eps/2", warm_start=True)
    refreshed = refreshed_sets.store_refreshed(
        cached, new, network, "new-model", refresh, tmp_path / "r"
    )
    after = store.join(list(refreshed.blocks()))
    assert (after.images[trained] == new.numpy()).all()
    for name in ("images", "labels", "ids", "eps"):
        assert (after.datasets[name][~trained] == block.datasets[name][~trained]).all()
    assert (after.fooled == (networks.predict(network, after.images, 64) != after.labels)).all()
    attributes = refreshed.attributes
    assert (attributes["kind"], attributes["model.sha256"], attributes["cached.digest"]) == (
        "refreshed",
        "new-model",
        cached.digest,
    )
    assert (attributes["refresh.steps"], attributes["refresh.alpha"]) == (2, "eps/2")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stored_set_is_attacked_again_to_the_same_bytes(tmp_path, network, precision):
    clean = write_set(tmp_path / "clean", make_block(40))
    settings = SETTINGS.model_copy(update={"precision": precision})
    stored = generate(clean, network, tmp_path / "pgd", settings=settings)
    part = clean.block(1).select(np.arange(16) >= 8)
    again = generation.attacked_again(
        stored, part, 24, network, attack_spec(**PGD), settings, device=CPU
    )
    assert (again.images == stored.block(1).images[8:]).all()
    assert (again.fooled == stored.block(1).fooled[8:]).all()
