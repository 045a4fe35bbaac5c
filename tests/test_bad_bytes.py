"""Files that were tampered with, one thing at a time.

Each is refused, and the line says what was found.
"""

import json
import os
import pickle
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import document, networks
from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, limits
from pipeline.base.values import parse_level
from pipeline.prepare import sources
from pipeline.prepare.sources import folder_layout, image_files
from tests import samples
from tests.conftest import make_block, renew_manifest, write_set

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def opened(settings, tmp_path):
    """Opens a source under `tmp_path` and reads all of it."""

    def read(source, name):
        data = settings.data.model_copy(
            update={"source": source, "path": str(tmp_path / name), "image_size": 8}
        )
        found = sources.open_source(data)
        return found.read(np.arange(len(found.labels)))

    return read


def test_an_hdf5_file_that_does_not_fit_in_memory(opened, tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "images", data=np.full((10_000, 3, 8, 8), 200, dtype="u1"), compression="gzip"
        )
        file["labels"] = np.arange(10_000) % 2
    assert (opened("hdf5", "x.h5") == 200).all()
    monkeypatch.setattr(limits, "available_memory", lambda: 1_000_000)
    with pytest.raises(
        InputError,
        match=r"/images unpacks [\d,]+ bytes to 1,920,000, more than this machine's free memory",
    ):
        opened("hdf5", "x.h5")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.abort()", r"it makes libhdf5 crash \(status -6\)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGPROF)",
            "it takes libhdf5 too long to look through",
        ),
    ],
)
def test_a_crash_or_hang_of_libhdf5_is_one_refusal(clean, tmp_path, monkeypatch, program, message):
    (tmp_path / "walk.py").write_text(program)
    with monkeypatch.context() as patch:
        patch.setattr(hdf5.hdf5_inspector, "__file__", str(tmp_path / "walk.py"))
        assert message.split(" \\")[0] in hdf5._answer({})
    request = {
        "path": str(clean.path / "00000.h5"),
        "memory": 10**9,
        "datasets": ["images"],
    }
    assert hdf5._answer(request) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fooled", np.zeros(16), "fooled: expected 16 rows of bool, found float64"),
        (
            "labels",
            np.zeros((16, 2), dtype=int),
            r"labels: expected 16 rows of int64, found int64 \(16, 2\)",
        ),
        (
            "images",
            np.zeros((16, 1, 8, 8), dtype="u1"),
            "images: expected 16 rows of uint8, found uint8",
        ),
        (
            "images",
            np.zeros((9, 3, 8, 8), dtype="u1"),
            "images: expected 16 rows of uint8, found uint8",
        ),
    ],
)
def test_shards_of_another_shape_are_refused_unread(clean, name, content, message):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        if name in file:
            del file[name]
        file[name] = content
    renew_manifest(clean.path)
    with pytest.raises(InputError, match=message):
        store.ImageSet(clean.path).load("val")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", [1, 2], r"attribute kind: expected a plain value, found list"),
        ("kind", None, "attribute kind: expected a plain value, found NoneType"),
        ("kind", "\x1b[31mred", "attribute kind: expected a plain value, found str"),
        ("rows", 3.5, "attribute rows: expected a whole number, found 3.5"),
    ],
)
def test_attributes_of_another_kind(clean, key, value, message):
    renew_manifest(clean.path, **{key: value})
    with pytest.raises(InputError, match=message):
        store.ImageSet(clean.path)


@pytest.mark.parametrize("value", [np.arange(3), 7, "other"])
def test_attributes_of_a_shard_that_are_not_those_of_its_set(clean, value):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        file.attrs["kind"] = value
    renew_manifest(clean.path)
    with pytest.raises(
        InputError, match=r"00000.h5: its attributes are not those of its set's manifest"
    ):
        store.ImageSet(clean.path).load("val")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("not JSON", "class_names: expected a list of names"),
        ("[1, 2]", "class_names: expected a list of names"),
        (
            json.dumps(["\x1b[31mred", "b"]),
            r"expected names of 1 to 200 printable letters, found '\\x1b\[31mred'",
        ),
    ],
)
def test_class_names_of_a_store(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        _ = write_set(tmp_path / "set", make_block(4), class_names=names).class_names


def test_what_is_no_plain_file_is_never_opened(opened, tmp_path):
    for source, name in (("npz", "x.npz"), ("hdf5", "x.h5"), ("task_dataset", "Train.pt")):
        os.mkfifo(tmp_path / name)
        with pytest.raises(
            InputError, match="expected a plain file, found a folder, pipe or device"
        ):
            opened(source, name)


def rewrite(path, name, content, *, method=zipfile.ZIP_STORED, twice=False):
    """The same archive with another member of that name, or a second one."""
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member, held in members:
            archive.writestr(member, content if member == name else held)
            if twice and member == name:
                archive.writestr(member, held)


def npy(header, content=b""):
    raw = header.encode()
    return b"\x93NUMPY\1\0" + len(raw).to_bytes(2, "little") + raw + content


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 8, 8)}"),
            {},
            "its header claims 192,000,000,000,000 bytes",
        ),
        (
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -6)}", b"123456"),
            {},
            "its header claims 6 bytes, the archive holds 6",
        ),
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
            {},
            "an array of object, which is no array of numbers or text",
        ),
        (
            npy("{'descr': '|V4', 'fortran_order': False, 'shape': (1,)}"),
            {},
            r"an array of \|V4, which is no array of numbers or text",
        ),
        (
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "(" * 5000),
            {},
            "cannot be read as .npz",
        ),
        (
            b"\x93NUMPY\3\0" + b"\0" * 100,
            {},
            r"an .npy header of version \(3, 0\), expected 1.0 or 2.0",
        ),
        (b"hello", {}, "cannot be read as .npz"),
        (
            b"",
            {"method": zipfile.ZIP_LZMA},
            r"is encrypted or compressed in a way that is not read here \(method 14\)",
        ),
        (b"", {"twice": True}, "it holds 'images.npy' twice"),
    ],
)
def test_npz_files(opened, tmp_path, content, options, message):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    rewrite(tmp_path / "x.npz", "images.npy", content, **options)
    with pytest.raises(InputError, match=message):
        opened("npz", "x.npz")


def test_zip_members_that_claim_other_sizes(opened, tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((6, 3, 8, 8), dtype="u1"), labels=LABELS)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "available_memory", lambda: 500)
        with pytest.raises(
            InputError,
            match=r"refused: \d+ bytes that unpack to [\d,]+, more than this machine's free memory",
        ):
            opened("npz", "x.npz")
    np.savez(path, images=PIXELS, labels=LABELS)
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\1\2")
    raw[place + 24 : place + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(InputError, match="'images.npy' claims another size than it has"):
        opened("npz", "x.npz")
    raw[place + 20 : place + 24] = (2**31).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(
        InputError, match=r"its members claim 2,147,\d+,\d+ bytes, more than the file has"
    ):
        opened("npz", "x.npz")


def test_class_names_that_would_write_to_the_terminal(opened, tmp_path):
    np.savez(
        tmp_path / "x.npz",
        images=PIXELS,
        labels=LABELS,
        class_names=np.array(["a", "\x1b]0;title\x07", "c"]),
    )
    with pytest.raises(
        InputError,
        match=(
            r"class_names: expected names of 1 to 200 printable letters, found "
            r"'\\x1b\]0;title\\x07'"
        ),
    ):
        opened("npz", "x.npz")


def test_no_error_has_control_characters_or_a_second_line():
    assert str(InputError("a\nb\x1b[31m\x9b\u202e\udc80é …")) == r"a\nb\x1b[31m\x9b\u202e\udc80é …"


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), "white").save(tmp_path / "images" / name / "a.png")
    return tmp_path / "images"


def test_links_out_of_an_image_folder(opened, folder, tmp_path):
    Image.new("RGB", (9, 9), "white").save(tmp_path / "secret.png")
    (folder / "cat" / "inside.png").symlink_to(folder / "dog" / "a.png")
    assert len(opened("image_folder", "images")) == 3
    (folder / "cat" / "outside.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        InputError,
        match=r"outside.png: refused: a link out of .*images; put the image itself there",
    ):
        opened("image_folder", "images")
    (folder / "cat" / "outside.png").unlink()
    (folder / "cat" / "again").symlink_to(folder, target_is_directory=True)
    with pytest.raises(InputError, match=r"cat/again: refused: a link to another folder"):
        opened("image_folder", "images")


def test_what_else_may_lie_in_an_image_folder(opened, folder, monkeypatch):
    os.mkfifo(folder / "cat" / "pipe.png")
    with pytest.raises(InputError, match=r"pipe.png: expected a plain file"):
        opened("image_folder", "images")
    (folder / "cat" / "pipe.png").unlink()
    (folder / "cat" / "pipe.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(
        InputError, match=r"pipe.png: not an image that can be read \(cannot identify"
    ):
        opened("image_folder", "images")
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "MAX_BYTES", 10)
        with pytest.raises(InputError, match=r"a.png: expected at most 10 bytes, found"):
            opened("image_folder", "images")
    (folder / "cat" / "more").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(folder_layout, "MAX_DEPTH", 1)
        with pytest.raises(
            InputError, match=r"cat/more: refused: more than 1 folders inside each other"
        ):
            opened("image_folder", "images")
    (folder / "cat" / "pipe.png").unlink()
    (folder / "dog").rename(folder / "dog\x1b[31m")
    with pytest.raises(
        InputError,
        match=r"classes: expected names of 1 to 200 printable letters, found 'dog\\x1b\[31m'",
    ):
        opened("image_folder", "images")


STORAGE = torch.zeros(4).untyped_storage()


class Rebuilt:
    """A tensor as a hostile file describes it: this shape and stride over four stored numbers."""

    def __init__(self, size, stride, first=0, rebuild=torch._utils._rebuild_tensor_v2):
        self.call = (
            rebuild,
            (
                torch.storage.TypedStorage(
                    wrap_storage=STORAGE, dtype=torch.float32, _internal=True
                ),
                first,
                size,
                stride,
                False,
                OrderedDict(),
            ),
        )

    def __reduce__(self):
        return self.call


def save(path, content):
    torch.save(content, path)
    return networks.read_state_dict(path, "model.weights")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Rebuilt((5,), (1,))}, "a tensor that claims more than storage '0' holds"),
        (
            {"a": Rebuilt((10**6, 10**6), (0, 0))},
            "a tensor that claims more than storage '0' holds",
        ),
        ({"a": Rebuilt((2,), (1,), first=3)}, "a tensor that claims more than storage '0' holds"),
        ({"a": Rebuilt((-1,), (1,))}, "a tensor of an impossible shape over storage '0'"),
        ({"a": Rebuilt((2, 2), (1,))}, "a tensor of an impossible shape over storage '0'"),
        ({"a": Rebuilt((2,) * 9, (1,) * 9)}, "a tensor of an impossible shape over storage '0'"),
        ({"a": Rebuilt((2**41, 0), (1, 1))}, "a tensor of an impossible shape over storage '0'"),
        (
            {"a": torch.zeros(3).to(torch.float8_e4m3fn)},
            "(a tensor of a type that is not known|torch._utils._rebuild_tensor_v2 with a storage)",
        ),
        ({"a": np.array(["x"])}, "an array that is not of numbers"),
    ],
    ids=[
        "short",
        "stretched",
        "shifted",
        "negative",
        "unequal",
        "dimensions",
        "extent",
        "float8",
        "text",
    ],
)
def test_tensors_that_are_not_what_they_claim(tmp_path, content, message):
    with pytest.raises(
        InputError, match=rf"not a file of tensors that can be read safely \(refused: {message}"
    ):
        save(tmp_path / "own.pth", content)


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.eye(3).to_sparse()},
        {"a": torch.empty(3, device="meta")},
        {"a": [[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]},
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_without_plain_numbers_are_none(tmp_path, content):
    with pytest.raises(InputError, match="tensors by name, found other values under 'a'; save"):
        save(tmp_path / "own.pth", content)


def test_storages_that_are_smaller_than_they_claim(tmp_path):
    path = tmp_path / "own.pth"
    save(path, {"a": torch.zeros(100)})
    rewrite(path, "own/data/0", b"\0" * 10)
    with pytest.raises(InputError, match="storage '0' claims 400 bytes, the file holds 10"):
        networks.read_state_dict(path, "model.weights")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n)R"
    rewrite(path, "own/data.pkl", b"\x80\x02}X\x01\0\0\0a" + tensor + b"s.")
    with pytest.raises(InputError, match="_rebuild_tensor_v2 with a storage that is not plain"):
        networks.read_state_dict(path, "model.weights")
    rewrite(path, "own/data.pkl", b"\x80\x02" + tensor + b".")
    with pytest.raises(InputError, match="found a tensor; save network.state_dict"):
        networks.read_state_dict(path, "model.weights")
    rewrite(path, "own/data.pkl", b"\0" * (2**24 + 1))
    with pytest.raises(InputError, match=r"safely \(is it whole\?\)"):
        networks.read_state_dict(path, "model.weights")


def test_older_files_are_read_and_held_to_their_sizes(tmp_path):
    path = tmp_path / "own.pth"
    torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert networks.read_state_dict(path, "model.weights")["a"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    key = max(re.findall(rb"\d{9,}", whole))
    before, after = whole.rsplit(key, 1)
    path.write_bytes(before + b"7" * len(key) + after)
    with pytest.raises(InputError, match="the storages that it lists are not those of its tensors"):
        networks.read_state_dict(path, "model.weights")
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="its storages claim 12 bytes, the file holds 11"):
        networks.read_state_dict(path, "model.weights")
    path.write_bytes(whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"))
    with pytest.raises(InputError, match="a tensor of a type that is not known"):
        networks.read_state_dict(path, "model.weights")
    path.write_bytes(whole.replace(b"\x03" + b"\0" * 7, b"\x02" + b"\0" * 7))
    with pytest.raises(InputError, match="storage '.*' claims two sizes or types"):
        networks.read_state_dict(path, "model.weights")


def test_storages_inside_a_pickle_are_held_to_their_sizes(tmp_path):
    path = tmp_path / "own.pth"
    whole = pickle.dumps({"a": torch.arange(3.0)}, 4)
    path.write_bytes(whole)
    assert networks.read_state_dict(path, "model.weights")["a"].tolist() == [0, 1, 2]
    count = b"\x03" + b"\0" * 7
    for damaged, message in (
        (whole.replace(count, b"\x02" + count[1:]), "storage '.*' claims two sizes or types"),
        (whole.replace(b"FloatStorage", b"QInt8Storage"), "the storages that it lists are not"),
        (whole.replace(b"little_endian", b"\xff" * 13), "a storage that cannot be read"),
        (whole.replace(b"torch\nFloat", b"sorch\nFloat"), "the storages that it lists are not"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"read safely \(refused: {message}"):
            networks.read_state_dict(path, "model.weights")


def test_arrays_that_claim_more_than_was_stored(tmp_path):
    path = tmp_path / "own.pth"
    whole = pickle.dumps({"a": np.arange(3.0)}, 2)
    for old, new, message in (
        (b"K\x01K\x03\x85", b"K\x01K\x04\x85", "a NumPy array of 4 values of 8 bytes"),
        (b"K\x01K\x03\x85", b"K\x01U\x01a\x85", "a NumPy array without its content"),
        (b"\x02\0\0\0f8", b"\x02\0\0\0f7", "a NumPy array that is neither of numbers nor of text"),
        (b"\x02\0\0\0f8", b"\x02\0\0\0O8", "a NumPy array that is neither of numbers nor of text"),
    ):
        damaged = whole.replace(old, new)
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"read safely \(refused: {message}"):
            networks.read_state_dict(path, "model.weights")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x06N.", "expected pickle protocol 2 to 5, found 6; nothing of it was run"),
        (
            b"\x80\x02cos\nsystem\n.",
            "it asks for os.system, which a file of this kind does not need; nothing of it was run",
        ),
        (
            b"\x80\x02I1\n.",
            "it uses INT, which pickles of protocol 2 to 5 do not; nothing of it was run",
        ),
        (b"\x80\x02}" + b"(" * 3 + b"\x85\x85\x85N" + b"s.", "cannot be read as a torch.save file"),
        (b"\x80\x02NNa.", "cannot be read as a torch.save file"),
        (b"\x80\x02B\xff\xff\xff\xff", "cannot be read as a torch.save file"),
        (b"\x80\x02c" + b"a" * 1000 + b"\nb\n.", "cannot be read as a torch.save file"),
    ],
    ids=["protocol", "name", "step", "key", "stack", "length", "long name"],
)
def test_pickles(opened, tmp_path, pickled, message):
    with zipfile.ZipFile(tmp_path / "Train.pt", "w") as archive:
        archive.writestr("Train/data.pkl", pickled)
    with pytest.raises(InputError, match=message):
        opened("task_dataset", "Train.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &x [1]\nb: &y [*x]\n",
            r"params.yaml:2: expected single values in what an anchor marks, found \*x",
        ),
        (
            "a: " + "[" * 30 + "]" * 30,
            r"params.yaml:1: expected at most 20 levels inside each other",
        ),
        ("a: " + "9" * 5000, r"expected values of at most 1,000 letters, found one of 5,000"),
        ("#" * 2**18 + "\n", "expected at most 262,144 bytes, found 262,145"),
        ("a: 2001-99-99", "not YAML"),
        ("a: !!python/object/apply:os.system [x]", "not YAML"),
        ("\x1b[31m: 1", "not YAML"),
        ('"\\e[31m": 1\n"\\e[31m": 2', r'found duplicate key "\\x1b\[31m"'),
    ],
)
def test_params_that_would_harm(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        document.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("value", ["1e-999999999", "1e999999999", "9/1e-999999999"])
def test_numbers_that_would_take_for_ever(value):
    with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
        parse_level(value)


def test_whole_numbers_have_an_end(raw_params):
    raw_params["clean"]["epochs"] = 10**30
    with pytest.raises(ValueError, match="less than 2147483648"):
        document.Document.model_validate(raw_params)


class Marked:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_torchvision_files_are_unpickled_only_with_official_md5(settings, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    samples.write_cifar(
        tmp_path, monkeypatch, "cifar10", PIXELS.reshape(6, -1).repeat(16, axis=1), LABELS.tolist()
    )
    data = settings.data.model_copy(update={"source": "cifar10", "path": str(tmp_path)})
    sources.open_source(data)
    for name in ("train_part", "names"):
        path = tmp_path / "cifar-10-batches-py" / name
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Marked()))
        with pytest.raises(
            InputError, match="cifar10 is not there whole and could not be downloaded"
        ):
            sources.open_source(data)
        path.write_bytes(whole)
    assert not (tmp_path / "unpickled").exists()
