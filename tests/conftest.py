"""Small real things that tests share: images, stores, networks, params."""

import dataclasses
import os
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline import document
from pipeline.attacks.params import Attack
from pipeline.base import files, store
from pipeline.base.store import manifest
from pipeline.base.untrusted import hdf5
from pipeline.train import mixing
from pipeline.train.images import HeldImages
from tests import narrow
from tests.inspector import Inspector
from tests.narrow import NarrowResNet

ROOT = Path(__file__).parent.parent
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


# They run whole pipelines, train networks or read thousands of damaged files; the longest first, so
# that the workers end together.
SLOW = (
    "test_pipeline.py",
    "cluster/test_training.py",
    "audit/",
    "cluster/",
    "test_repro.py",
    "faults/",
    "report/",
    "evaluate/test_diagnostics.py",
    "evaluate/test_ensemble.py",
    "test_presets.py",
    "test_place.py",
    "test_main.py",
    "test_discard.py",
    "generate/",
    "benchmarks/",
    "train/test_group.py",
    "train/test_loop.py",
    "networks/",
    "fuzz/",
    "test_bad_bytes.py",
    "attacks/",
    "harden/",
    "evaluate/test_judgement.py",
    "plan/test_planning.py",
    "base/untrusted/test_hdf5.py",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        path = str(item.path.relative_to(ROOT / "tests"))
        return next((place for place, name in enumerate(SLOW) if path.startswith(name)), len(SLOW))

    items.sort(key=rank)
    for item in items:
        if rank(item) < len(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_sent():
    """DVC in projects of the tests reports nothing to its authors."""
    os.environ["DVC_NO_ANALYTICS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread_each():
    """Tests run side by side; threads of one torch would only get in another's way."""
    torch.set_num_threads(
        max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    )


@pytest.fixture(scope="module")
def one_thread():
    """For small networks, which lose more by handing work to a second thread than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_inspector():
    """One process examines all HDF5 files."""
    inspector = Inspector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "_answer", inspector.answer)
        yield
    inspector.close()


@pytest.fixture(scope="module")
def narrow_resnet18():
    """Networks that are asked for as resnet18 are narrow ones."""
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        yield


@pytest.fixture(scope="module")
def read_once():
    """Files of the same content are parsed once."""
    from tests import tiny_project

    with pytest.MonkeyPatch.context() as patch:
        tiny_project.read_once(patch)
        yield


@pytest.fixture(scope="session")
def settings() -> document.Document:
    return document.load(ROOT / "params.yaml")


@pytest.fixture
def raw_params() -> dict:
    """The committed params.yaml as plain values, to change and write again."""
    return YAML(typ="safe").load((ROOT / "params.yaml").read_text())


@pytest.fixture(scope="session")
def network() -> NarrowResNet:
    torch.manual_seed(0)
    return NarrowResNet(num_classes=3).eval()


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A tiny project with every stage run once by DVC, a copy for this worker."""
    from tests import tiny_project  # it imports DVC, which most tests do not need

    project = tiny_project.made_once(tmp_path_factory, "tiny_project")
    return shutil.copytree(project, tmp_path_factory.getbasetemp() / "made")


@pytest.fixture
def block() -> store.Block:
    return make_block(40)


@pytest.fixture
def clean(tmp_path, block) -> store.ImageSet:
    return write_set(tmp_path / "clean", block)


def make_block(n: int, size: int = 16, n_classes: int = 3, seed: int = 0) -> store.Block:
    """Random images, classes in turn, every fourth row for validation."""
    generator = np.random.default_rng(seed)
    return store.Block(
        images=generator.integers(0, 256, (n, 3, size, size), dtype=np.uint8),
        labels=np.arange(n) % n_classes,
        ids=np.arange(n) + 100,
        split=(np.arange(n) % 4 == 3).astype(np.uint8),
    )


def write_set(path: Path, block: store.Block, shard_rows: int = 16, **attributes) -> store.ImageSet:
    bounds = store.shard_bounds(len(block), shard_rows)
    named = {"kind": "clean", "class_names": '["a", "b", "c"]', **attributes}
    with store.Writer(path, named, bounds=bounds) as writer:
        for start, stop in writer.missing():
            writer.write(
                start,
                store.Block(**{name: array[start:stop] for name, array in block.datasets.items()}),
            )
    return store.ImageSet(path)


def renew_manifest(folder: Path, **attributes: object) -> None:
    """Make the manifest of a set agree with its changed shards, as a skilled attacker would."""
    found = manifest.read(folder)
    shards = {
        name: dataclasses.replace(entry, sha256=files.sha256(folder / name))
        for name, entry in found.shards.items()
    }
    manifest.write(folder, {**found.attributes, **attributes}, shards)


def held_batches(
    streams: dict[str, store.Block], counts: dict[str, int], **options
) -> mixing.MixedBatches:
    """Mixed batches of whole blocks in memory, on the CPU, with seed 0."""
    cpu = torch.device("cpu")
    images = HeldImages(torch.cat([torch.from_numpy(streams[name].images) for name in counts]), cpu)
    return mixing.MixedBatches(
        images, {name: streams[name].labels for name in counts}, counts, 0, cpu, **options
    )


def attack_spec(**entry) -> Attack:
    return Attack.model_validate(entry)


FGSM = {"attack": "FGSM", "eps": "8/255"}
PGD = {"attack": "PGD", "eps": "8/255", "alpha": "2/255", "steps": 3, "random_start": True}
