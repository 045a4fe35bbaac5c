import pytest

from pipeline import networks
from pipeline.networks.params import Model
from pipeline.train import checkpointed, loop
from tests.train.conftest import CPU, Tiny, scores


@pytest.fixture
def train(batches, recipe, tmp_path):
    """Trains for four epochs with these validation accuracies."""

    def trained(validate, also_write):
        return checkpointed.train(
            Tiny(),
            batches,
            validate,
            recipe,
            text="t",
            out=tmp_path / "m.safetensors",
            history=tmp_path / "h.csv",
            architecture="resnet18",
            class_names=["a", "b", "c"],
            provenance={"clean.digest": "d"},
            attack_passes=lambda epochs: 100 + 7 * epochs,
            also_write=also_write,
            device=CPU,
        )

    return trained


def test_train_writes_the_best_epoch_and_its_history(train, tmp_path):
    also = []
    done = train(scores(0.1, 0.5, 0.3, 0.2)[0], also.append)
    assert done.startswith(
        f"{tmp_path}/m.safetensors: epoch 2 of 4 kept, validation accuracy 0.5000"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.csv", "m.safetensors"]
    (checkpoint,) = also
    assert checkpoint.provenance["best.epoch"] == 2
    assert checkpoint.provenance["attack_passes"] == 100 + 4 * 7


def test_every_epoch_prints_a_line_and_writes_the_history(train, tmp_path, capsys):
    validate, _ = scores(0.1, 0.5, 0.3, 0.2)
    seen = []

    def counting(network):
        path = tmp_path / "h.csv"
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
        return validate(network)

    train(counting, lambda _: None)
    assert seen == [0, 2, 3, 4], "the head and the epochs so far"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("t: epoch")]
    assert len(lines) == 4
    assert lines[1].startswith("t: epoch 2 of 4: loss ")
    assert lines[1].endswith(", validation accuracy 0.5000")


def test_a_training_that_fails_leaves_no_history(train, tmp_path):
    validate, _ = scores(0.1, 0.5)
    calls = []

    def failing(network):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left")
        return validate(network)

    with pytest.raises(OSError, match="no space left"):
        train(failing, lambda _: None)
    assert not (tmp_path / "h.csv").exists(), "`make repro` restores what is missing"


def test_a_training_stopped_while_it_writes_repeats_no_epoch(train, tmp_path, capsys):
    def full_disk(_: networks.Checkpoint) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        train(scores(0.1, 0.5, 0.3, 0.2)[0], full_disk)
    written = {name: (tmp_path / name).read_bytes() for name in ("h.csv", "m.safetensors")}
    assert len(list(tmp_path.glob(".*.part"))) == 1, "unfinished work is deleted last"
    for name in written:  # as DVC does
        (tmp_path / name).unlink()
    validate, seen = scores()
    train(validate, lambda _: None)
    assert not seen
    assert "all 4 epochs were done before" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_a_key_that_is_left_out_is_not_recorded(recipe):
    class Later(type(recipe)):
        later: int | None = None

    entry = recipe.model_dump(exclude_unset=True)
    found = [
        checkpointed._origin({}, Later.model_validate({**entry, **extra}), CPU)
        for extra in ({}, {"later": 3})
    ]
    assert found[0] == checkpointed._origin({}, recipe, CPU)
    assert found[1] == {**found[0], "training.later": 3}


def test_how_the_first_weights_are_taken_is_part_of_where_a_model_comes_from():
    own = {"architecture": "resnet18", "weights": "models/pretrained/own.pth"}
    plain, whole = (Model.model_validate({**own, **more}) for more in ({}, {"keep_head": True}))
    assert checkpointed.first_weights(plain, "1") == {
        "weights": own["weights"],
        "weights.sha256": "1",
    }
    assert checkpointed.first_weights(whole, "1") == {
        **checkpointed.first_weights(plain, "1"),
        "weights.keep_head": "true",
    }


def test_a_checkpoint_says_on_what_it_was_trained_and_that_it_went_back(
    batches, recipe, tmp_path, monkeypatch
):
    fitted = loop.Fit(
        state_dict=Tiny().state_dict(),
        best={"epoch": 1, "val_accuracy": 0.5},
        history=[{"epoch": 1, "alpha_scale": 1.0}, {"epoch": 2, "alpha_scale": 0.5}],
        collapsed=1,
        processors=["cpu (AVX2, 1 thread)", "cpu (AVX2, 2 threads)"],
    )
    monkeypatch.setattr(checkpointed, "fit", lambda *_, part, **options: part.touch() or fitted)
    also = []
    checkpointed.train(
        Tiny(), batches, lambda _: {}, recipe, text="t", out=tmp_path / "m.safetensors",
        history=tmp_path / "h.csv", architecture="resnet18", class_names=["a"], provenance={},
        also_write=also.append, device=CPU,
    )  # fmt: skip
    assert also[0].provenance["collapsed.epoch"] == 1
    assert also[0].provenance["collapsed.alpha_scale"] == 0.5
    assert also[0].provenance["processor"] == "cpu (AVX2, 1 thread), then cpu (AVX2, 2 threads)"
    assert (tmp_path / "h.csv").read_text() == "epoch,alpha_scale\n1,1.0\n2,0.5\n"
