import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.train import mixing
from tests.conftest import held_batches, make_block, write_set

COUNTS = {"clean": 64, "fgsm": 32, "pgd": 32}


def sampler(n_clean=1000, n_adv=700, counts=COUNTS, seed=0):
    labels = {name: np.arange(n_clean if name == "clean" else n_adv) % 3 for name in counts}
    return mixing.MixSampler(labels, counts, seed)


def test_full_batches_have_the_exact_mix_of_kinds():
    *full, last = [
        {name: len(rows) for name, rows in parts.items()} for parts in sampler().epoch(0)
    ]
    assert len(full) == 15
    assert all(parts == COUNTS for parts in full)
    assert last == {"clean": 40, "fgsm": 20, "pgd": 20}


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 64),
    st.integers(0, 64),
    st.integers(0, 3),
)
def test_an_epoch_is_one_pass_over_the_clean_images(n_clean, n_adv, clean_count, adv_count, epoch):
    assume(not adv_count or min(n_clean, clean_count) * adv_count >= clean_count)
    mix = sampler(n_clean, n_adv, {"clean": clean_count, "pgd": adv_count})
    batches = list(mix.epoch(epoch))
    assert len(batches) == len(mix)
    assert sorted(np.concatenate([parts["clean"] for parts in batches])) == list(range(n_clean))
    for parts in batches[:-1]:
        assert {name: len(rows) for name, rows in parts.items()} == {
            "clean": clean_count,
            "pgd": adv_count,
        }
    assert (
        len(batches) == 1 or clean_count == 1 or all(len(parts["clean"]) > 1 for parts in batches)
    )


@given(st.integers(2, 200), st.integers(1, 200))
def test_adversarial_streams_use_every_image_equally_often(n_clean, n_adv):
    mix = sampler(n_clean, n_adv, {"clean": 8, "pgd": 4})
    drawn = np.concatenate([parts["pgd"] for epoch in range(6) for parts in mix.epoch(epoch)])
    times = np.bincount(drawn, minlength=n_adv)
    assert times.max() - times.min() <= 1


def test_streams_have_orders_of_their_own_and_epochs_differ():
    first, second = ([parts["clean"] for parts in sampler().epoch(epoch)] for epoch in (0, 1))
    assert not (first[0] == second[0]).all()
    parts = next(iter(sampler(700, 700).epoch(0)))
    assert not (parts["fgsm"] == parts["pgd"]).all()


def test_the_seed_decides_every_epoch_by_itself():
    whole = [parts["pgd"] for parts in sampler(seed=3).epoch(2)]
    again = [parts["pgd"] for parts in sampler(seed=3).epoch(2)]
    other = [parts["pgd"] for parts in sampler(seed=4).epoch(2)]
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))
    assert not (whole[0] == other[0]).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_an_epoch_without_an_image_of_a_stream_is_refused(balanced):
    labels = dict.fromkeys(("clean", "pgd"), np.arange(10) % 2)
    with pytest.raises(InputError, match="10 training images: too few, .* none of pgd; lower"):
        mixing.MixSampler(labels, {"clean": 60, "pgd": 4}, 0, balanced=balanced)


def test_balanced_sampling_draws_classes_and_images_equally():
    labels = {
        "clean": np.repeat([0, 1, 2], [5, 40, 155]),
        "pgd": np.repeat([0, 1, 2], [10, 40, 50]),
    }
    mix = mixing.MixSampler(labels, {"clean": 16, "pgd": 8}, seed=0, balanced=True)
    assert len(mix) == 13, "as many batches as without"
    epochs = [list(mix.epoch(epoch)) for epoch in range(9)]
    for name, classes in labels.items():
        drawn = np.concatenate([parts[name] for batches in epochs for parts in batches])
        per_class = np.bincount(classes[drawn])
        assert per_class.max() - per_class.min() <= 1
        for label in range(3):
            times = np.bincount(drawn, minlength=len(classes))[classes == label]
            assert times.max() - times.min() <= 1
    again = list(mixing.MixSampler(labels, {"clean": 16, "pgd": 8}, seed=0, balanced=True).epoch(4))
    assert all((a["pgd"] == b["pgd"]).all() for a, b in zip(epochs[4], again, strict=True))


def marked_block(n: int, mark: int) -> store.Block:
    """Images whose first pixel tells their stream and whose second and third tell their row."""
    block = make_block(n)
    block.images[:, 0, 0, 0] = mark
    block.images[:, 0, 0, 1], block.images[:, 0, 0, 2] = block.ids % 256, block.ids // 256
    return block


def test_batches_hold_images_with_their_labels_in_shuffled_order():
    streams = {
        "clean": marked_block(200, 0),
        "fgsm": marked_block(150, 1),
        "pgd": marked_block(150, 2),
    }
    batches = held_batches(streams, {"clean": 32, "fgsm": 16, "pgd": 16})
    names = list(streams)
    for images, labels, _ in batches.epoch(0):
        pixels = (images * 255).round().to(torch.uint8).numpy()
        marks, ids = (
            pixels[:, 0, 0, 0],
            pixels[:, 0, 0, 1].astype(int) + 256 * pixels[:, 0, 0, 2].astype(int),
        )
        for mark, row, image, label in zip(marks, ids - 100, pixels, labels, strict=True):
            assert (image == streams[names[mark]].images[row]).all()
            assert label == streams[names[mark]].labels[row]
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        assert (np.diff(marks.astype(int)) != 0).sum() > len(marks) / 4, (
            "kinds must not stand in blocks"
        )


def test_no_image_with_a_validation_original_enters_training(tmp_path, settings):
    blocks = {name: marked_block(80, mark) for mark, name in enumerate(("clean", "fgsm", "pgd"))}
    sets = {name: write_set(tmp_path / name, block) for name, block in blocks.items()}
    validation = set(sets["clean"].load("val").ids)
    batches = mixing.training_batches(
        sets,
        settings.finetuned["robust"].model_copy(update={"batch_size": 16}),
        torch.device("cpu"),
    )
    seen = set()
    for epoch in range(4):
        for images, _, _ in batches.epoch(epoch):
            pixels = (images * 255).round().int()
            seen |= {(int(mark), int(low + 256 * high)) for mark, low, high in pixels[:, 0, 0, :3]}
    assert len(seen) == 3 * 60, "every training image of every kind is used"
    assert not {row for _, row in seen} & validation
