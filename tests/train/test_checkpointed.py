import torch

from pipeline.base import files, unfinished
from pipeline.train import checkpointed
from tests.train.conftest import CPU, Tiny, scores


def test_train_writes_the_best_epoch_and_keeps_what_it_takes_until_dvc_records_it(batches, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    also = []

    def train(validate):
        return checkpointed.train(
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
