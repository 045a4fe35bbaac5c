"""A tiny project made by the real DVC, then tampered with one thing at a time.

The audit finds and names each change.
"""

import copy
import csv
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import dvc.repo
import h5py
import numpy as np
import pytest
import torch

from pipeline import __main__ as command
from pipeline import networks
from pipeline.attacks.params import Attack
from pipeline.audit import (
    audit,
    comparisons,
    lineage,
    project,
    records,
    robustness,
    samples,
    trained,
)
from pipeline.audit.adversarial_sets import adversarial_set
from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.store import SPLITS, Block, manifest
from pipeline.networks import scores
from pipeline.networks.device import threads_of
from tests import tiny_project
from tests.conftest import renew_manifest
from tests.tiny_project import change_params, here, replace, reproduce, run_here

pytestmark = [
    pytest.mark.usefixtures("narrow_resnet18", "read_once"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
    ),
]
CPU = torch.device("cpu")
PGD, FGSM, CLEAN = "data/adversarial/clean/pgd", "data/adversarial/clean/fgsm", "data/clean"
OWN_PGD, R_PGD = (
    "data/adversarial/robust/pgd",
    "data/adversarial/sources/clean/pgd",
)  # of the model `again` starts from, and of another


@pytest.fixture(autouse=True, scope="module")
def _coarse_pictures():
    """An audit draws the pictures again."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_project.coarse_pictures(patch)
        yield


@pytest.fixture(scope="module")
def joined(made, tmp_path_factory):
    """The project with one more model, `again`.

    It is fine-tuned from `robust` and mixes a set made against `clean`.
    """
    folder = shutil.copytree(made, tmp_path_factory.mktemp("joined") / "project")
    change_params(folder, two_sources)
    reproduce(folder)
    return folder


def two_sources(params):
    again = params["finetuned"]["refreshed"]
    params["finetuned"]["again"] = {
        **again,
        "of": "robust",
        "ema": 0.9,
        "mix": {"clean": 0.5, "pgd": 0.25, "clean-pgd": 0.25},
    }
    params.update(attacked=["clean", "robust"], sources=["clean"])
    params["evaluate"]["models"].append("again")


@pytest.fixture
def folder(made, tmp_path):
    """The project, for one test to spoil."""
    return tiny_project.copy(made, tmp_path / "project")


def test_an_eps_that_is_drawn_is_found_in_the_lock():
    spec = Attack.model_validate({"attack": "FGSM", "eps": {"uniform": ["1/255", "8/255"]}})
    attributes = {"kind": "adversarial", "attack": "weak", "attack.class": "FGSM"}
    attributes |= {f"attack.{key}": value for key, value in spec.described.items()}
    recorded = {"attacks.weak.eps.uniform": ["1/255", "8/255"], "attacks.weak.attack": "FGSM"}
    held = {key: value for key, _, value in records._held_by_set("p", attributes, recorded)}
    assert held.keys() >= recorded.keys()
    for key, value in recorded.items():
        assert records._plain(held[key]) == records._plain(value)


def failures(folder, path="."):
    """What an audit of the project, or of one image set in it, calls FAILED."""
    return {
        f"{row.stage}: {row.parameter}": row.value
        for row in audit.audit(folder / path, CPU)
        if row.verdict == "FAILED"
    }


def failures_of(folder, stage):
    """What is FAILED of one stage."""
    return {
        row.parameter: row.value
        for row in audit._stage(project.Project(folder, CPU), stage)
        if row.verdict == "FAILED"
    }


def own(path):
    """A copy of a file in its place, to be changed."""
    content = path.read_bytes()
    replace(path, lambda new: new.write_bytes(content))
    return path


def spoil(folder, shard, name, edit, *, rehash=False):
    """Change a dataset of a shard.

    With `rehash`, also change its SHA-256 in the manifest, as a careful attacker would.
    """
    path = own(folder / shard)
    with h5py.File(path, "r+") as file:
        array = file[name][...]
        edit(array)
        file[name][...] = array
    if rehash:
        renew_manifest(path.parent)


def relock(folder, path):
    """Let dvc.lock record what lies there now, wherever it names `path`."""
    old = {
        md5
        for stage in lineage.recorded(folder).values()
        for name, md5 in {**stage.deps, **stage.outs}.items()
        if name == path
    }
    text = (folder / "dvc.lock").read_text()
    for md5 in old:
        text = text.replace(md5, lineage.md5(folder / path))
    replace(folder / "dvc.lock", lambda new: new.write_text(text))


def test_an_untouched_project_passes_with_the_same_measures(made):
    rows = audit.audit(made, CPU)
    unchecked = {row.parameter for row in rows if row.verdict == "not checked"}
    assert unchecked == {f"robust accuracy, {name}" for name in ("fgsm", "pgd", "apgd", "worst")}
    assert {row.verdict for row in rows} == {"ok", "not checked"}
    judged = {"evaluate@clean", "evaluate@robust", "evaluate@refreshed"}
    stages = {
        "prepare",
        "train_clean",
        "generate@clean-fgsm",
        "generate@clean-pgd",
        "finetune@robust",
        "finetune@refreshed",
        *judged,
    }
    assert {row.stage for row in rows} == {*stages, "export", "threat models", "versions"}
    assert audit.measures(rows) == audit.measures(audit.audit(made, CPU))
    recorded = json.loads((made / "report/audit.json").read_text())
    assert recorded["failed"] == 0
    assert recorded["generate@clean-pgd.distance"] == 32
    assert recorded["generate@clean-pgd.rows"] == 120
    assert all(isinstance(value, int | float) for value in recorded.values())


def test_the_hashes_of_dvc_are_recomputed(made):
    for stage in lineage.recorded(made).values():
        for path, md5 in {**stage.deps, **stage.outs}.items():
            assert lineage.md5(made / path) == md5 or path in (
                "models",
                "plots",
                "report/audit.json",
            ), path


def flip(place):
    def edit(array):
        array[place] = 255 - array[place]

    return edit


def far(array):
    array[7] = np.where(array[7] > 127, 0, 255)


def one_more(array):
    array[7] += 1


def moved(array):
    array[[3, 7]] = [1 - array[3], 1 - array[7]]


def copied(array):
    array[8] = array[9]


SPOILT = "its content does not match its SHA-256"


@pytest.mark.parametrize(
    ("shard", "name", "edit"),
    [
        (f"{PGD}/00001.h5", "images", flip((7, 0, 3, 3))),
        (f"{FGSM}/00000.h5", "labels", one_more),
        (f"{CLEAN}/00002.h5", "ids", one_more),
        (f"{CLEAN}/00000.h5", "split", moved),
        (f"{PGD}/00000.h5", "fooled", lambda array: np.logical_not(array, out=array)),
    ],
)
def test_any_changed_dataset_is_found_by_its_hash(folder, shard, name, edit):
    spoil(folder, shard, name, edit)
    path = str(Path(shard).parent)
    found = failures(folder, path)
    (made_by,) = [stage for stage, entry in lineage.recorded(folder).items() if path in entry.outs]
    assert f"{shard}: {SPOILT}" in found[f"{made_by}: {path}"]
    assert "on the disk" in found[f"{made_by}: output {path}"]


@pytest.mark.parametrize(
    ("shard", "name", "edit", "row", "text"),
    [
        (
            f"{PGD}/00001.h5",
            "images",
            far,
            "generate@clean-pgd: distance",
            "255/255 at most, eps allows 32/255: 1 of 120 rows, the first is row 57",
        ),
        (
            f"{FGSM}/00001.h5",
            "labels",
            one_more,
            "generate@clean-fgsm: labels",
            "1 of 120 rows, the first is row 57",
        ),
        (
            f"{FGSM}/00001.h5",
            "ids",
            one_more,
            "generate@clean-fgsm: ids",
            "1 of 120 rows, the first is row 57",
        ),
        (
            f"{FGSM}/00000.h5",
            "split",
            moved,
            "generate@clean-fgsm: split",
            "2 of 120 rows, the first is row 3",
        ),
        (
            f"{PGD}/00000.h5",
            "eps",
            lambda array: array.fill(0.01),
            "generate@clean-pgd: stated eps",
            "50 of 120 rows",
        ),
        (
            f"{CLEAN}/00001.h5",
            "images",
            flip((7, 0, 3, 3)),
            "prepare: images of the raw data",
            "1 of 120 rows, the first is row 57",
        ),
        (
            f"{CLEAN}/00001.h5",
            "labels",
            lambda array: np.put(array, 7, (array[7] + 1) % 10),
            "prepare: labels of the raw data",
            "row 57",
        ),
        (f"{CLEAN}/00001.h5", "ids", copied, "prepare: ids", "1 row with the id of another"),
        (f"{CLEAN}/00001.h5", "ids", copied, "prepare: ids of the raw data", "row 58"),
        (f"{CLEAN}/00000.h5", "split", moved, "prepare: split", "2 rows, the first is row 3"),
    ],
)
def test_whoever_renews_the_hashes_is_found_by_recomputation(folder, shard, name, edit, row, text):
    spoil(folder, shard, name, edit, rehash=True)
    relock(folder, str(Path(shard).parent))
    found = failures(folder, Path(shard).parent)
    assert text in found[row]
    assert f"{row.split(':')[0]}: output {Path(shard).parent}" not in found, "dvc.lock agrees"


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_held_out_image_among_the_training_rows_is_found(folder, part):
    for shard in sorted((folder / CLEAN).glob("*.h5")):
        spoil(folder, f"{CLEAN}/{shard.name}", "split", held_out_for(part), rehash=True)
    spoil(folder, f"{PGD}/00000.h5", "split", lambda array: array.fill(0), rehash=True)
    assert (
        "held-out images among the training rows"
        in failures_of(folder, "finetune@robust")["training rows of pgd"]
    )


def held_out_for(part):
    """Return an edit of a split, whose held-out images become those of another part."""

    def edit(array):
        array[array > 0] = SPLITS[part]

    return edit


@pytest.mark.parametrize("row", ["fooled again", "attacked again"])
def test_a_set_of_another_attack_is_found_by_attacking_again(folder, row):
    """Every image is within eps, with right hashes.

    The flags are inverted, or every image is moved by one level in place of the attack.
    """
    for shard in ("00000.h5", "00001.h5", "00002.h5"):
        with h5py.File(folder / CLEAN / shard) as file:
            clean = file["images"][...]
        if row == "fooled again":
            spoil(
                folder,
                f"{PGD}/{shard}",
                "fooled",
                lambda array: np.logical_not(array, out=array),
                rehash=True,
            )
        else:
            spoil(
                folder,
                f"{PGD}/{shard}",
                "images",
                lambda array, near=clean ^ 1: np.copyto(array, near),
                rehash=True,
            )
    relock(folder, PGD)
    found = failures(folder, PGD)
    assert "rows, the first is row" in found[f"generate@clean-pgd: {row}"]
    assert "generate@clean-pgd: distance" not in found


def test_a_set_is_attacked_again_with_as_many_threads_as_it_records(folder, monkeypatch):
    attacked_again, before = samples.generation.attacked_again, torch.get_num_threads()

    def rounding(*args, **kwargs):
        found = attacked_again(*args, **kwargs)
        return dataclasses.replace(
            found, images=found.images ^ np.uint8(torch.get_num_threads() != before)
        )

    monkeypatch.setattr(samples.generation, "attacked_again", rounding)
    with threads_of(f"{before + 1} threads"):
        rows = adversarial_set(project.Project(folder, CPU), PGD)
        (row,) = (row for row in rows if row.parameter == "attacked again")
    assert row.verdict == "ok"
    assert row.value.endswith("the same bytes")


@pytest.mark.parametrize(("share", "verdict"), [(1 / 8, "ok"), (1 / 2, "FAILED")])
def test_a_few_values_of_an_attack_may_differ_on_a_gpu(folder, monkeypatch, share, verdict):
    monkeypatch.setitem(samples.SAME, "cpu", samples.SAME["cuda"])

    def move(images):
        images[:, :, : int(share * images.shape[2])] ^= 1

    for shard in ("00000.h5", "00001.h5", "00002.h5"):
        spoil(folder, f"{PGD}/{shard}", "images", move, rehash=True)
    rows = {row.parameter: row for row in adversarial_set(project.Project(folder, CPU), PGD)}
    assert rows["attacked again"].verdict == verdict
    assert (
        "12.50% of their values differ" if verdict == "ok" else "rows, the first is row"
    ) in rows["attacked again"].value


REFRESHED, AGAIN = "data/refreshed/refreshed", "data/refreshed/again"


def test_test_images_of_a_refreshed_set_are_compared_too(folder):
    shard = f"{REFRESHED}/pgd/00001.h5"
    spoil(folder, shard, "split", held_out_for("test"), rehash=True)
    changed = lambda array: np.bitwise_xor(array, 1, out=array)  # noqa: E731
    spoil(folder, shard, "images", changed, rehash=True)
    relock(folder, REFRESHED)
    found = failures_of(folder, "finetune@refreshed")
    assert "of them differ from" in found[f"{REFRESHED}/pgd held-out rows"]


@pytest.mark.parametrize(
    ("name", "edit", "row", "text"),
    [
        ("images", far, "pgd distance", "eps allows 32/255: 1 of 120 rows, the first is row 57"),
        ("ids", one_more, "pgd ids", "1 of 120 rows, the first is row 57"),
        (
            "images",
            lambda array: np.bitwise_xor(array, 1, out=array),
            "pgd held-out rows",
            "of them differ from data/adversarial/clean/pgd",
        ),
    ],
)
def test_a_refreshed_set_is_held_to_its_clean_and_its_cached_one(folder, name, edit, row, text):
    spoil(folder, f"{REFRESHED}/pgd/00001.h5", name, edit, rehash=True)
    relock(folder, REFRESHED)
    found = failures_of(folder, "finetune@refreshed")
    assert text in found[f"{REFRESHED}/{row}"]
    assert f"output {REFRESHED}" not in found, "dvc.lock agrees"


def test_a_refreshed_set_of_another_model_is_found(folder):
    for shard in ("00000.h5", "00001.h5", "00002.h5"):
        replace(
            folder / REFRESHED / "pgd" / shard,
            lambda path, name=shard: shutil.copy(folder / PGD / name, path),
        )
    replace(
        folder / REFRESHED / "pgd" / manifest.NAME,
        lambda path: shutil.copy(folder / PGD / manifest.NAME, path),
    )
    found = failures_of(folder, "finetune@refreshed")
    assert "no such attribute" in found[REFRESHED] or "KeyError" in found[REFRESHED]


def test_a_refreshed_set_that_is_missing_is_found(folder):
    shutil.rmtree(folder / REFRESHED / "pgd")
    relock(folder, REFRESHED)
    found = failures_of(folder, "finetune@refreshed")
    assert found["refreshed sets"] == "in one place only, the folder or params.yaml: pgd"


@pytest.mark.parametrize("start", range(20))
def test_a_sample_has_its_size_wherever_it_begins(start, monkeypatch):
    monkeypatch.setattr(samples, "SAMPLE", 30)
    rows = np.arange(101)
    block = Block(
        images=np.zeros((101, 3, 1, 1), np.uint8),
        labels=rows,
        ids=rows,
        split=rows.astype(np.uint8),
    )
    images = SimpleNamespace(bounds=[(7, 108)], digest=hex(start), block=lambda _: block)
    settings = SimpleNamespace(generate=SimpleNamespace(batch_size=10))
    sample = samples.sample_of(images, images, settings)
    assert len(sample.rows) == len(sample.stored) == 30
    assert sample.rows.start == 7 + sample.stored.ids[0]


def test_sets_of_two_models_are_mixed_refreshed_and_audited(joined):
    rows = audit.audit(joined, CPU)
    (row,) = [row for row in rows if row.verdict not in ("ok", "not checked")]
    assert (row.verdict, row.parameter) == ("warning", OWN_PGD)
    assert row.value == "trained on by again; judged by no evaluation"
    parameters = {row.parameter for row in rows if row.stage == "finetune@again"}
    assert {
        f"made from {path}"
        for path in (CLEAN, OWN_PGD, R_PGD, "models/clean.safetensors", "models/robust.safetensors")
    } <= parameters
    assert f"made from {FGSM}" not in parameters, "it is in no mix of this model"
    assert {
        "training rows of pgd",
        "training rows of clean-pgd",
        "finetuned.again.mix.clean-pgd",
    } <= parameters
    assert {
        f"{AGAIN}/clean-pgd made with {path}"
        for path in (R_PGD, "models/clean.safetensors", "models/again.safetensors")
    } <= parameters
    assert {
        f"{AGAIN}/pgd made with {path}"
        for path in (OWN_PGD, "models/robust.safetensors", "models/again.safetensors")
    } <= parameters
    assert sorted(path.name for path in (joined / AGAIN).iterdir()) == ["clean-pgd", "pgd"]
    accuracies = [
        row.parameter
        for row in rows
        if row.stage == "evaluate@again" and row.parameter.startswith("accuracy")
    ]
    assert accuracies == [f"accuracy on {name}" for name in ("clean", "fgsm", "pgd", "mixed")], (
        "its transfer is from one model"
    )


@pytest.fixture
def twice(joined, tmp_path):
    """The project with sets of two models, for one test to spoil."""
    return tiny_project.copy(joined, tmp_path / "project")


def test_a_set_of_the_parent_in_place_of_another_source_is_found(twice):
    shutil.rmtree(twice / R_PGD)
    shutil.copytree(twice / OWN_PGD, twice / R_PGD)
    for path in (R_PGD, "data/adversarial/sources"):
        relock(twice, path)
    assert failures_of(twice, "generate_source@clean-pgd")[
        "made from models/clean.safetensors"
    ].startswith("recorded ")
    found = failures_of(twice, "finetune@again")
    assert found.keys() == {
        f"made from {R_PGD}",
        f"{AGAIN}/clean-pgd made with {R_PGD}",
        f"{AGAIN}/clean-pgd held-out rows",
    }
    assert found[f"made from {R_PGD}"].startswith("recorded ")


def test_another_source_model_is_found(twice):
    replace(
        twice / "models/clean.safetensors",
        lambda path: shutil.copy(twice / "models/refreshed.safetensors", path),
    )
    relock(twice, "models/clean.safetensors")
    assert failures_of(twice, "finetune@again").keys() == {
        "made from models/clean.safetensors",
        f"{AGAIN}/clean-pgd made with models/clean.safetensors",
    }


def test_two_sets_of_one_name_are_a_failure(twice):
    shutil.rmtree(twice / PGD)
    shutil.copytree(twice / FGSM, twice / PGD)
    relock(twice, PGD)
    assert (
        failures_of(twice, "finetune@refreshed")["models/refreshed.safetensors"]
        == f"{PGD}: made by fgsm, as {FGSM} is; run `dvc repro`"
    )


def test_a_threat_trained_on_through_another_source_is_compared(twice):
    change_params(twice, lambda params: params.update(mix={"clean": 0.5, "fgsm": 0.5}))
    change_params(
        twice,
        lambda params: params["finetuned"]["again"].update(mix={"clean": 0.5, "clean-pgd": 0.5}),
    )
    assert "attacks.pgd" in {
        row.parameter for row in comparisons.threat_models(project.Project(twice, CPU))
    }


FINETUNE = (
    "python -m pipeline.harden.finetune --clean data/clean --out models/again.safetensors "
    "--history plots/x/history.csv"
    " --refreshed data/refreshed/x --model {model} --adversarial {own} --sources {sources}"
)
SOURCES = "data/adversarial/sources"


@pytest.mark.parametrize(
    ("model", "own", "sources", "message"),
    [
        (
            "models/clean.safetensors",
            "data/adversarial/robust",
            SOURCES,
            f"{OWN_PGD}: made with other params, .*: model.sha256: expected ",
        ),
        (
            "models/nope.safetensors",
            "data/adversarial/robust",
            SOURCES,
            "models/nope.safetensors: no such model; `dvc repro` trains it",
        ),
        (
            "params.yaml",
            "data/adversarial/robust",
            SOURCES,
            "params.yaml: not a checkpoint of this pipeline",
        ),
        (
            "models/robust.safetensors",
            "data/adversarial/robust",
            "data/adversarial",
            r"data/adversarial/nope/pgd: no such image set, which finetuned.again mixes \(found "
            r"none\)",
        ),
        (
            "models/robust.safetensors",
            AGAIN,
            SOURCES,
            f"{AGAIN}/pgd: .*: kind: expected adversarial, found refreshed",
        ),
    ],
)
def test_sets_that_the_mix_does_not_name_are_refused(twice, model, own, sources, message):
    if "nope/pgd" in message:
        change_params(
            twice,
            lambda params: params["finetuned"]["again"].update(mix={"clean": 0.5, "nope-pgd": 0.5}),
        )
    with here(twice), pytest.raises(InputError, match=message) as caught:
        run_here(FINETUNE.format(model=model, own=own, sources=sources))
    assert "\n" not in str(caught.value)


def test_a_changed_attribute_is_found_despite_a_new_fingerprint(folder):
    path = own(folder / PGD / manifest.NAME)
    whole = path.read_text()
    path.write_text(whole.replace('"attack.steps": 2', '"attack.steps": 40'))
    assert (
        "attributes do not match their fingerprint"
        in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    )
    path.write_text(whole)
    plain = {**manifest.read(folder / PGD).attributes, "attack.steps": 40}
    for shard in ("00000.h5", "00001.h5", "00002.h5"):
        with h5py.File(own(folder / PGD / shard), "r+") as file:
            file.attrs["attack.steps"], file.attrs["fingerprint"] = 40, manifest.fingerprint(plain)
    renew_manifest(folder / PGD, **{"attack.steps": 40})
    relock(folder, PGD)
    assert (
        failures(folder, PGD)["generate@clean-pgd: attacks.pgd.steps"]
        == f"dvc.lock: 2; params.yaml: 2; {PGD}: 40"
    )


def test_a_changed_attribute_of_a_shard_is_found(folder):
    with h5py.File(own(folder / PGD / "00001.h5"), "r+") as file:
        file.attrs["attack.steps"] = 40
    assert f"00001.h5: {SPOILT}" in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    renew_manifest(folder / PGD)
    assert (
        "its attributes are not those of its set's manifest"
        in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    )


def test_a_swapped_and_a_missing_shard_are_found(folder):
    replace(folder / PGD / "00001.h5", lambda path: shutil.copy(folder / FGSM / "00001.h5", path))
    assert f"00001.h5: {SPOILT}" in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    renew_manifest(folder / PGD)
    assert (
        "its attributes are not those of its set's manifest"
        in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    )
    (folder / PGD / "00001.h5").unlink()
    assert (
        "00000.h5, 00001.h5, … without gaps" in failures(folder, PGD)[f"generate@clean-pgd: {PGD}"]
    )


def test_a_set_in_the_place_of_another_is_found(folder):
    shutil.rmtree(folder / PGD)
    shutil.copytree(folder / FGSM, folder / PGD)
    relock(folder, PGD)
    assert (
        failures(folder, PGD)["generate@clean-pgd: attacks.fgsm.attack"]
        == f"{PGD}: FGSM; dvc.lock: no such parameter"
    )


def test_a_changed_param_is_found(folder):
    change_params(folder, lambda params: params["attacks"]["pgd"].update(eps="16/255"))
    found = failures(folder, PGD)
    assert (
        found["generate@clean-pgd: attacks.pgd.eps"]
        == f"dvc.lock: 32/255; params.yaml: 16/255; {PGD}: 0.12549019607843137"
    )
    assert "eps allows 16/255" in found["generate@clean-pgd: distance"]


def test_a_param_in_another_notation_is_the_same_param(folder):
    change_params(folder, lambda params: params["training"].update(weight_decay=0.0005))
    assert failures(folder) == {}


def test_a_changed_byte_of_a_checkpoint_is_found(folder):
    path = own(folder / "models/robust.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = failures(folder)
    assert "on the disk" in found["finetune@robust: output models/robust.safetensors"]
    assert "recorded" in found["evaluate@robust: judges models/robust.safetensors"]
    assert "differs from models/robust.safetensors" in found["export: submission"]


def test_a_swapped_model_is_found_by_all_that_was_made_with_it(folder):
    replace(
        folder / "models/clean.safetensors",
        lambda path: shutil.copy(folder / "models/robust.safetensors", path),
    )
    relock(folder, "models/clean.safetensors")
    found = failures(folder)
    for row in (
        "generate@clean-pgd: made from models/clean.safetensors",
        "finetune@robust: made from models/clean.safetensors",
        "evaluate@clean: judges models/clean.safetensors",
    ):
        assert found[row].startswith("recorded "), row
    assert "train_clean: clean.epochs" in found


def test_changed_provenance_is_found(folder):
    path = folder / "models/robust.safetensors"
    checkpoint = networks.load(
        path, architecture="resnet18", class_names=project.Project(folder, CPU).class_names
    )
    checkpoint.provenance.update(
        {"training.lr": 0.5, "pgd.digest": "0", "best.val_accuracy": 0.99, "versions.torch": "1.0"}
    )
    replace(path, checkpoint.save)
    relock(folder, "models/robust.safetensors")
    found = failures(folder)
    assert (
        found["finetune@robust: training.lr"]
        == "dvc.lock: 0.001; params.yaml: 0.001; models/robust.safetensors: 0.5"
    )
    assert found[f"finetune@robust: made from {PGD}"].startswith("recorded 0, is ")
    assert found["finetune@robust: best epoch"].startswith(
        "recorded epoch 1 with 0.990000, history: epoch 1 with "
    )
    (row,) = [
        row
        for row in audit.audit(folder, CPU)
        if row.parameter == "torch" and row.verdict == "warning"
    ]
    assert row.value.startswith("1.0; installed here: ")


def test_a_changed_hash_in_the_lock_is_found(folder):
    text = (folder / "dvc.lock").read_text()
    md5 = lineage.recorded(folder)["train_clean"].outs["models/clean.safetensors"]
    replace(folder / "dvc.lock", lambda path: path.write_text(text.replace(md5, "f" * 32, 1)))
    found = failures(folder)
    remedy = f"run `python -m pipeline discard {folder}/models/clean.safetensors`, then `dvc repro`"
    assert (
        found["train_clean: output models/clean.safetensors"]
        == f"dvc.lock: MD5 ffffffffffff, on the disk: {md5[:12]}; {remedy}"
    )
    assert (
        found["finetune@robust: input models/clean.safetensors"]
        == f"read with MD5 {md5[:12]}, but train_clean wrote ffffffffffff"
    )


def test_an_input_that_no_stage_wrote_so_is_found(folder):
    text = (folder / "dvc.lock").read_text()
    before, after = text.split("  finetune@robust:", 1)
    md5 = lineage.recorded(folder)["train_clean"].outs["models/clean.safetensors"]
    replace(
        folder / "dvc.lock",
        lambda path: path.write_text(
            before + "  finetune@robust:" + after.replace(md5, "f" * 32, 1)
        ),
    )
    found = failures_of(folder, "finetune@robust")
    assert "MD5 ffffffffffff" in found["input models/clean.safetensors"]


def test_changed_raw_data_and_changed_code_are_found(folder):
    own(folder / "data/raw/README.md").write_text("other")
    own(folder / "pipeline/attacks/library.py").write_text("")
    found = failures(folder)
    assert "on the disk" in found["prepare: input data/raw"]
    assert found["generate@clean-pgd: code"] == "other than it was run: pipeline/attacks"
    assert "prepare: code" not in found


def test_bytecode_beside_the_code_changes_nothing(folder):
    (folder / "pipeline/base/__pycache__").mkdir()
    (folder / "pipeline/base/__pycache__/files.cpython-311.pyc").write_bytes(b"x")
    assert failures_of(folder, "train_clean") == {}


@pytest.mark.parametrize(
    ("edit", "row"),
    [
        (lambda metrics: metrics["clean"].update(accuracy=0.999), "accuracy on clean"),
        (lambda metrics: metrics["transfer"]["pgd"].update(accuracy=0.999), "accuracy on pgd"),
        (lambda metrics: metrics["transfer"]["mixed"].update(high95=1.0), "accuracy on mixed"),
        (
            lambda metrics: metrics["transfer"]["pgd"].update(made_against_this_model=True),
            "kind of pgd",
        ),
        (lambda metrics: metrics["transfer"]["pgd"].update(eps=1 / 255), "kind of pgd"),
        (lambda metrics: metrics["transfer"]["pgd"].update({"eps.least": 0.001}), "kind of pgd"),
        (lambda metrics: metrics["robust"]["pgd"].update(accuracy=0.999), "robust accuracy, pgd"),
        (lambda metrics: metrics["robust"]["pgd"].update(steps=100), "evaluate.threats.pgd.steps"),
        (lambda metrics: metrics.update(sha256="0"), "judges models/robust.safetensors"),
    ],
)
def test_a_changed_metric_with_a_new_hash_is_found(folder, edit, row):
    path = folder / "metrics/robust.json"
    metrics = json.loads(path.read_text())
    edit(metrics)
    replace(path, lambda new: new.write_text(json.dumps(metrics)))
    relock(folder, "metrics/robust.json")
    assert row in failures_of(folder, "evaluate@robust")


def labels_of(folder, n):
    """The labels of the images that a sample of the judged ones has."""
    val = project.Project(folder, CPU).images(CLEAN).load("val")
    return val.labels[scores.sample(val, n, 0)]


def spoil_metrics(folder, edit):
    path = folder / "metrics/robust.json"
    metrics = json.loads(path.read_text())
    edit(metrics)
    replace(path, lambda new: new.write_text(json.dumps(metrics)))
    relock(folder, "metrics/robust.json")


def check(name, **values):
    return lambda metrics: metrics["diagnostics"]["checks"][name].update(values)


@pytest.mark.parametrize(
    ("edit", "row", "text"),
    [
        (lambda metrics: metrics["diagnostics"].update(verdict="strong"), "verdict", "strong, the"),
        (lambda metrics: metrics["diagnostics"].update(failed=["x"]), "verdict", "the checks give"),
        (
            check("stands_at_eps_1", verdict="passed"),
            "checks",
            "stands_at_eps_1: verdict: recorded passed, is inconclusive",
        ),
        (check("black_box_finds_more", limit=0.9), "checks", "limit: recorded 0.9, is 0.02"),
        (
            check("fgsm_stronger_than_pgd", value=0.375, verdict="passed"),
            "checks",
            "recorded passed with 0.375, the limit is 0.02",
        ),
        (
            check("fgsm_above_clean", limit=0.5, value=0.4),
            "checks",
            "limit: recorded 0.5, is 0.02",
        ),
        (
            lambda metrics: metrics["diagnostics"]["checks"].pop("outputs_are_random"),
            "checks",
            "outputs_are_random: in one place only",
        ),
        (
            check("outputs_are_random", value=None, n=0, limit=0.0, verdict="not run"),
            "checks",
            "outputs_are_random: recorded as not run, although there are images for it",
        ),
        (check("outputs_are_random", n=900), "checks", "outputs_are_random: n: recorded 900, is 8"),
        (check("more_steps_find_more", n=900), "checks", "more_steps_find_more: n: recorded 900, "),
        (check("stands_at_eps_1", n=900), "checks", "stands_at_eps_1: n: recorded 900, is 4"),
        (lambda metrics: metrics["robust"].pop("apgd"), "robust accuracies", "apgd"),
        (
            lambda metrics: metrics["robust"]["apgd"].update(left_out="apgd_t"),
            "settings of apgd",
            "left_out: recorded apgd_t, is None",
        ),
        (
            lambda metrics: metrics["robust"]["worst"].update(over=["fgsm"]),
            "worst against the attacks",
            "over: recorded",
        ),
        (
            lambda metrics: metrics["robust"]["pgd"]["per_class"].reverse(),
            "robust accuracy, pgd",
            "its classes give",
        ),
        (lambda metrics: metrics["grid"].update(n=400), "grid", "n: recorded 400, the file"),
        (
            lambda metrics: metrics["grid"]["worst"].update(accuracy=1.5),
            "grid",
            "worst: recorded 1.5, the others allow",
        ),
        (lambda metrics: metrics.update(grid=None), "grid", "in one place only"),
        (
            check("more_steps_raise_accuracy", value=-0.9),
            "curves",
            "more_steps_raise_accuracy: recorded -0.9, the file gives",
        ),
    ],
)
def test_a_number_that_others_contradict_is_found(folder, edit, row, text):
    spoil_metrics(folder, edit)
    assert text in failures_of(folder, "evaluate@robust")[row]


def test_a_joint_accuracy_above_an_attacks_own_is_found(folder):
    labels = labels_of(folder, 6)
    forged = scores.summarise(np.ones(6, dtype=bool), labels, 10)
    spoil_metrics(folder, lambda metrics: metrics["robust"]["worst"].update(forged))
    found = failures_of(folder, "evaluate@robust")
    assert "withstand all, the attacks allow 0 to " in found["worst against the attacks"]
    assert "robust accuracy, worst" not in found, "it is consistent in itself"


def test_only_attacking_again_finds_a_consistent_forgery(made, folder):
    rows = audit.audit(made, CPU, robust=True)
    again = {row.parameter: row for row in rows if "again" in row.parameter}
    assert {row.verdict for row in again.values()} == {"ok"}
    names = {f"attacked again, {name}" for name in ("fgsm", "pgd", "apgd", "worst")}
    assert names | {"grid again", "diagnostics again"} <= again.keys()
    assert {"grid.csv again", "curves.csv again"} <= again.keys()
    forged = scores.summarise(np.ones(8, dtype=bool), labels_of(folder, 8), 10)
    spoil_metrics(folder, lambda metrics: metrics["robust"]["pgd"].update(forged))
    assert "robust accuracy, pgd" not in failures_of(folder, "evaluate@robust")
    found = {row.parameter: row for row in audit.audit(folder, CPU, robust=True)}
    assert found["attacked again, pgd"].verdict == "FAILED"
    spoil_metrics(folder, lambda metrics: metrics.update(processor="another"))
    opened = project.Project(folder, CPU)
    rows = list(robustness.attacked_again(opened, "metrics/robust.json"))
    assert {row.parameter: row.verdict for row in rows}["attacked again, pgd"] == "FAILED", (
        "no other processor finds so much more"
    )


def test_what_another_processor_found_nearly_again_is_not_comparable(folder, monkeypatch):
    spoil_metrics(folder, lambda metrics: metrics.update(processor="another"))
    opened = project.Project(folder, CPU)
    recorded = opened.metrics("metrics/robust.json")
    robust = copy.deepcopy(recorded["robust"])
    robust["pgd"]["backward_passes"] += 1
    grid = {**recorded["grid"], "n": 0}
    metrics = {**recorded, "robust": robust, "grid": grid}
    judgement = robustness.judgement.Judgement(metrics=metrics, confusion=[], grid=[], curves=[])
    monkeypatch.setattr(robustness.judgement, "judge", lambda *_: judgement)
    rows = {row.parameter: row for row in robustness.attacked_again(opened, "metrics/robust.json")}
    assert rows["attacked again, pgd"].verdict == "not comparable"
    for name in ("grid", "grid.csv", "curves.csv"):
        assert rows[f"{name} again"].verdict == "not comparable"
    assert rows["attacked again, fgsm"].verdict == rows["diagnostics again"].verdict == "ok"
    assert "made with processor another (here " in rows["grid again"].value


@pytest.mark.parametrize(
    ("name", "edit", "row", "text"),
    [
        ("confusion.csv", lambda lines: [lines[0], "0,9", *lines[2:]], "confusion", "1 line, the"),
        ("confusion.csv", lambda lines: lines[:-1], "confusion", "29 lines for 30 images"),
        ("grid.csv", lambda lines: lines[:-1], "grid", "other guesses than those of params.yaml"),
        (
            "grid.csv",
            lambda lines: [line.replace("eps/4, 2 steps", "eps/4, 3 steps") for line in lines],
            "grid",
            "other guesses than those of params.yaml",
        ),
        (
            "grid.csv",
            lambda lines: [lines[0], raised(lines[1]), *lines[2:]],
            "grid",
            "the file gives",
        ),
        (
            "curves.csv",
            lambda lines: [*lines[:3], raised(lines[3]), *lines[4:]],
            "curves",
            "stands_at_eps_1",
        ),
        ("curves.csv", lambda lines: lines[:-1], "curves", "other points than those of params"),
        (
            "curves.csv",
            lambda lines: [lines[0], lines[1].replace(",4,", ",5,"), *lines[2:]],
            "curves",
            "line 2: n: recorded 5, params.yaml gives 4",
        ),
    ],
)
def test_a_changed_file_of_plots_with_a_new_hash_is_found(folder, name, edit, row, text):
    path = folder / "plots/robust" / name
    lines = edit(path.read_text().splitlines())
    replace(path, lambda new: new.write_text("\n".join([*lines, ""])))
    relock(folder, f"plots/robust/{name}")
    assert text in failures_of(folder, "evaluate@robust")[row]


def raised(line):
    """A line of a grid or of curves whose accuracy is 100 % with the right interval."""
    *start, n, _, _, _ = line.split(",")
    ends = scores.interval(np.ones(int(n), dtype=bool))
    return ",".join([*start, n, *(str(value) for value in ends.values())])


def test_the_picture_of_another_model_is_found(folder):
    for name in ("grid.png", "curves.png"):
        other = folder / "plots/refreshed" / name
        replace(folder / "plots/robust" / name, lambda path, other=other: shutil.copy(other, path))
        relock(folder, f"plots/robust/{name}")
    found = failures_of(folder, "evaluate@robust")
    assert found["picture grid.png"] == "not the picture of plots/robust/grid.csv"
    assert found["picture curves.png"] == "not the picture of plots/robust/curves.csv"
    spoil_metrics(folder, lambda metrics: metrics.update({"versions.matplotlib": "1.0"}))
    rows = {
        row.parameter: row for row in audit._stage(project.Project(folder, CPU), "evaluate@robust")
    }
    assert rows["picture grid.png"].verdict == "not comparable"


@pytest.mark.parametrize("path", ["data/nope", "data/adversarial", "data/clean/nope.h5"])
def test_a_path_that_is_no_result_is_refused(folder, path):
    with pytest.raises(InputError, match=f"{path}: no result that dvc.lock records; there are "):
        audit.audit(folder / path, CPU)


def test_a_fresh_clone_says_that_nothing_was_run(folder):
    for name in ("data", "models"):
        shutil.rmtree(folder / name)
    line = f"^{folder}: nothing was run here yet: dvc.lock records 11 image sets and models, and no"
    with pytest.raises(InputError, match=line):
        audit.audit(folder, CPU)


def test_the_table_fits_120_columns(folder):
    own(folder / "plots/robust/confusion.csv").write_text("x")
    rows = audit.audit(folder, CPU)
    lines = audit.table(rows).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("FAILED" in line for line in lines) == sum(row.verdict == "FAILED" for row in rows)
    head = "stageparametervaluerecordedinverdict"
    cells = [row.stage + row.parameter + row.value + row.where + row.verdict for row in rows]
    shown, expected = ("".join(text.split()) for text in ("".join(lines), "".join([head, *cells])))
    assert sorted(shown) == sorted(expected), "nothing is cut off"


def test_the_last_line_names_five_failures(folder):
    (folder / "models/clean.safetensors").unlink()
    rows = audit.audit(folder, CPU)
    n_failed = sum(row.verdict == "FAILED" for row in rows)
    with pytest.raises(InputError, match=rf"; and {n_failed - 5} more$"):
        audit.verdict(rows)


def test_unrecorded_commands_and_stages_are_found(folder):
    text = (folder / "dvc.yaml").read_text()
    replace(
        folder / "dvc.yaml",
        lambda path: path.write_text(
            text.replace("finetune --clean data/clean --model", "finetune --model")
        ),
    )
    change_params(
        folder,
        lambda params: params["attacks"].update(
            bim={"attack": "BIM", "eps": "8/255", "alpha": "4/255", "steps": 2}
        ),
    )
    found = failures(folder)
    assert found["finetune@robust: command"].startswith(
        "dvc.yaml: pipeline/python -m pipeline.harden.finetune --model"
    )
    assert found["generate@clean-bim: stage"] == "never run: not in dvc.lock"


def test_a_stage_of_another_configuration_is_left_over(folder):
    text = (folder / "dvc.lock").read_text()
    replace(
        folder / "dvc.lock",
        lambda path: path.write_text(text.replace("  export:\n", "  exported:\n")),
    )
    rows = {row.stage: row for row in audit.audit(folder, CPU) if row.parameter == "stage"}
    assert (rows["exported"].verdict, rows["export"].verdict) == ("warning", "FAILED")


def test_threat_models_that_differ_are_a_warning(folder):
    change_params(folder, lambda params: params["attacks"]["pgd"].update(eps=0.03))
    alone, beside_fgsm = (
        r"attacks\.pgd:\n",
        r"attacks:\n +fgsm:\n +attack: FGSM\n +eps: 32/255\n +pgd:\n",
    )
    pattern = rf"((?:{alone}|{beside_fgsm}) +attack: PGD\n +eps:) 32/255"
    text = re.sub(pattern, r"\1 0.03", (folder / "dvc.lock").read_text())
    replace(folder / "dvc.lock", lambda path: path.write_text(text))
    rows = {row.parameter: row for row in comparisons.threat_models(project.Project(folder, CPU))}
    assert rows["attacks.pgd"].verdict == "warning"
    assert (
        rows["attacks.pgd"].value
        == "PGD eps 0.03 (7.65/255, stored as 7/255); judged by pgd PGD eps 32/255: another eps"
    )


@pytest.mark.parametrize(
    ("eps", "others", "problem"),
    [
        ("51/255", [0.2], ": written in other units"),
        ("51/255", [0.2, "51/255"], ""),
        (["1/255", "8/255"], ["8/255"], ""),
        ("8/255", [["1/255", "8/255"]], ""),
        (["1/255", "4/255"], ["8/255"], ": another eps"),
    ],
)
def test_a_drawn_eps_is_compared_by_its_bounds(eps, others, problem):
    specs = [{"attack": "PGD", "eps": other} for other in others]
    assert comparisons._mismatch({"attack": "PGD", "eps": eps}, specs) == problem


def test_an_attack_of_online_training_is_compared_too(folder):
    recorded = project.Project(folder, CPU)
    about = {"steps": 2, "random_start": True, "eps.uniform": ["16/255", "40/255"]}
    values = {f"online.mine.adversary.{key}": value for key, value in about.items()}
    entry = dataclasses.replace(recorded.stages["finetune@robust"], params=values)
    recorded.stages["train_online@mine"] = entry
    rows = {row.parameter: row for row in comparisons.threat_models(recorded)}
    assert rows["online.mine"].verdict == "ok"
    assert rows["online.mine"].value.startswith("PGD eps 16/255 to 40/255; judged by pgd PGD eps")
    assert "mine PGD eps 16/255 to 40/255" in rows["evaluate.threats.pgd"].value


def test_what_another_kind_of_device_made_is_not_compared(folder):
    class Elsewhere(project.Project):
        def images(self, path):
            found = copy.copy(super().images(path))
            found.attributes = {**found.attributes, "device": "cuda"}
            return found

    elsewhere = Elsewhere(folder, CPU)
    rows = {row.parameter: row for row in adversarial_set(elsewhere, PGD)}
    assert rows["attacked again"].verdict == "not comparable"
    assert rows["attacked again"].value == "made on cuda, this is cpu"


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    return command.main()


def test_the_command_prints_the_table_and_names_what_failed(folder, monkeypatch, capsys):
    assert re.fullmatch(
        r"audit: \d+ ok, 12 not checked, 0 warning, 0 not comparable, 0 FAILED",
        call(monkeypatch, "audit", str(folder)),
    )
    assert capsys.readouterr().out.splitlines()[0].split() == [
        "stage",
        "parameter",
        "value",
        "recorded",
        "in",
        "verdict",
    ]
    assert "audit: " in call(monkeypatch, "audit", str(folder / PGD))
    shown = capsys.readouterr().out
    assert "generate@clean-pgd" in shown
    assert "prepare" not in shown
    own(folder / "plots/robust/confusion.csv").write_text("x")
    with pytest.raises(
        InputError, match="3 FAILED: evaluate@robust: output plots/robust/confusion.csv"
    ):
        call(monkeypatch, "audit", str(folder))
    assert "FAILED" in capsys.readouterr().out.splitlines()[-2]


def test_the_measures_of_a_failed_audit_name_it(folder, tmp_path):
    own(folder / "plots/robust/confusion.csv").write_text("x")
    audit.write(tmp_path / "audit.json", audit.audit(folder, CPU))
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["failed"] == 3, "the export reads it too"
    assert "failed.evaluate@robust.output_plots/robust/confusion.csv" in found


def test_what_cannot_be_read_is_a_failure_that_says_why(folder):
    replace(folder / "metrics/clean.json", lambda path: path.write_text("{}"))
    replace(folder / "metrics/robust.json", lambda path: path.write_text("{"))
    (folder / "models/submission.pt").unlink()
    found = failures(folder)
    assert "cannot be checked: KeyError: " in found["evaluate@clean: metrics/clean.json"]
    assert (
        "metrics/robust.json: cannot be read; `dvc repro` makes it"
        in found["evaluate@robust: parameters"]
    )
    assert found["export: output models/submission.pt"] == "no such file or folder"
    assert "metrics/robust.json: cannot be read" in found["export: models/submission.pt"]


def test_a_submission_that_is_no_state_dict_is_a_failure(folder):
    replace(folder / "models/submission.pt", lambda path: path.write_text("x"))
    found = failures_of(folder, "export")
    assert found["models/submission.pt"].startswith("models/submission.pt: not a state_dict")


def test_other_class_names_and_another_card_are_found(folder):
    path = own(folder / "models/submission.classes.csv")
    path.write_text(path.read_text().replace("0,0", "0,1"))
    path = own(folder / "models/submission.md")
    path.write_text(path.read_text().replace("| clean |", "| clean | 99.9 |"))
    found = failures_of(folder, "export")
    assert found["class names"] == "not the 10 classes of data/clean in their order"
    assert found["model card"] == "not what the model, its metrics and its images give"


@pytest.mark.parametrize("error", [SyntaxError("broken PNG file"), csv.Error("field larger")])
def test_what_damaged_files_raise_is_a_failure_of_one_check(error):
    def rows():
        yield project.Row("first", "1", "p", "ok")
        raise error

    first, failed = audit._tried(rows(), "evaluate@robust", "plots")
    assert (first.verdict, failed.verdict) == ("ok", "FAILED")
    assert str(error) in failed.value


def test_another_eps_than_was_drawn_is_found(made, monkeypatch):
    found = project.Project(made, CPU)
    sample = samples.sample_of(found.images(CLEAN), found.images(PGD), found.settings)
    assert sample.stored.eps is not None
    model = found.network("models/clean.safetensors")
    spec = found.settings.attacks["pgd"]
    assert not samples._differing(found, PGD, model, spec, sample).any()
    sample.stored.eps[3] *= 4
    differing = samples._differing(found, PGD, model, spec, sample)
    assert (np.flatnonzero(differing) == [3]).all()
    assert differing[3] == 1


def test_pretrained_weights_are_held_to_their_file(folder):
    own_weights = "models/pretrained/own.pth"

    def row(**provenance):
        opened = project.Project(folder, CPU)
        checkpoint = opened.checkpoint("models/clean.safetensors")
        checkpoint.provenance.update(provenance)
        found = trained._pretrained(opened, "models/clean.safetensors", checkpoint)
        return found.verdict, found.value

    assert row() == ("ok", "none, from scratch")
    opened = project.Project(folder, CPU)
    checkpoint = opened.checkpoint("models/clean.safetensors")
    del checkpoint.provenance["weights"]
    found = trained._pretrained(opened, "models/clean.safetensors", checkpoint)
    assert (found.verdict, found.value) == ("FAILED", "recorded None, params.yaml: none")
    assert row(**{"weights.sha256": "1"}) == ("FAILED", "recorded SHA-256 1, params.yaml: none")
    assert row(weights=own_weights) == ("FAILED", f"recorded {own_weights}, params.yaml: none")
    change_params(folder, lambda params: params["model"].update(weights=own_weights))
    assert row(weights=own_weights) == ("not comparable", "own.pth is not here")
    (folder / own_weights).write_bytes(b"tensors")
    sha256 = files.sha256(folder / own_weights)
    assert row(weights=own_weights, **{"weights.sha256": sha256}) == ("ok", f"SHA-256 {sha256}")
    assert row(weights=own_weights, **{"weights.sha256": "1"}) == (
        "FAILED",
        f"recorded 1, is {sha256}",
    )


def test_an_image_on_both_sides_of_the_split_is_a_warning(folder):
    spoil(folder, f"{CLEAN}/00000.h5", "images", lambda array: array.fill(7), rehash=True)
    (row,) = [
        row for row in audit.audit(folder / CLEAN, CPU) if row.parameter == "images in both splits"
    ]
    assert (row.verdict, row.value) == ("warning", "1 different images")


def test_a_folder_that_is_no_project_is_refused(tmp_path):
    with pytest.raises(InputError, match="no project folder and not within one"):
        audit.audit(tmp_path, CPU)
    (tmp_path / "dvc.lock").write_text("stages: {a: {cmd: x, deps: [{path: y}]}}")
    with pytest.raises(InputError, match=r"params.yaml: no such file"):
        audit.audit(tmp_path, CPU)
    with pytest.raises(InputError, match="not a lock file of DVC 3"):
        lineage.recorded(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/dvc.lock").write_text("stages: [")
    with pytest.raises(InputError, match=r"dvc.lock: not YAML: .*; `git checkout dvc.lock` brings"):
        lineage.recorded(tmp_path / "torn")
    with pytest.raises(InputError, match="DVC cannot read the stages: you are not inside of a DVC"):
        lineage.declared(tmp_path)
    dvc.repo.Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x}}")
    with pytest.raises(InputError, match=r"dvc.lock: not as DVC writes it: .*`git checkout dvc.lo"):
        lineage.declared(tmp_path)
    (tmp_path / "dvc.lock").unlink()
    assert lineage.declared(tmp_path).keys() == {"a"}, "the remedy works"
    for text in ("stages: {a: {cmd: '${b.c}'}}", "stages: ["):
        (tmp_path / "dvc.yaml").write_text(text)
        with pytest.raises(InputError, match=r"dvc.yaml: DVC cannot read the stages: "):
            lineage.declared(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        lineage.md5(tmp_path / "nothing")
    with pytest.raises(InputError, match="an audit needs a project folder after `dvc repro`"):
        lineage.read_yaml(tmp_path / "nothing")
