import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import networks
from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.networks import checkpoint as checkpoints
from pipeline.networks import resnet
from tests import samples

NAMES = ("a", "b", "c")
ABOUT = {
    "format": checkpoints.FORMAT,
    "architecture": "resnet18",
    "class_names": [*NAMES],
    "provenance": {"seed": 1},
}


# Of what `test_the_same_checkpoint_gives_the_same_bytes` saves.
SHA256 = "20eac005f9bc0647ddc9e37e0743cc03eec9d59471db6c79f462f64a911a296a"


def tiny(*_):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def numbered():
    """The layers of `tiny` with values that no generator of random numbers decides."""
    network = tiny()
    for tensor in network.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return network


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A checkpoint of a network of two layers in the place of a ResNet."""
    monkeypatch.setattr(resnet, "stock", tiny)
    save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def save(path, **changes):
    content = {
        "architecture": "resnet18",
        "class_names": [*NAMES],
        "state_dict": tiny().state_dict(),
        "provenance": {"seed": 1},
    }
    networks.Checkpoint(**content | changes).save(path)


def load(path):
    return networks.load(path, architecture="resnet18", class_names=NAMES)


def refused(path, reason):
    """Check that a file is refused in one line, with this reason and the remedy."""
    with pytest.raises(InputError) as refusal:
        load(path)
    remedy = f"run `python -m pipeline discard {path}`, then `dvc repro`"
    assert str(refusal.value) == f"{path}: not a checkpoint of this pipeline ({reason}); {remedy}"


def change_header(path, change):
    """Write the file again with what `change` makes of its header, and its length."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


def test_a_checkpoint_comes_back_as_it_was(network, tmp_path):
    provenance = {"seed": 1, "weights": "none", "lr": 0.1 + 0.2, "ä": '\u2028\n"'}
    save(tmp_path / "sub/model.safetensors", state_dict=network.state_dict(), provenance=provenance)
    loaded = load(tmp_path / "sub/model.safetensors")
    assert (loaded.provenance, loaded.class_names) == (provenance, [*NAMES])
    assert loaded.state_dict.keys() == network.state_dict().keys()
    assert all(
        torch.equal(loaded.state_dict[name], tensor)
        for name, tensor in network.state_dict().items()
    )
    assert not loaded.network().training


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    provenance = {f"training.{number}": number for number in range(50)}
    layouts = (torch.contiguous_format, torch.channels_last)
    for number in range(8):
        state_dict = numbered().to(memory_format=layouts[number % 2]).state_dict()
        save(tmp_path / f"{number}.safetensors", state_dict=state_dict, provenance=provenance)
    assert {files.sha256(path) for path in tmp_path.iterdir()} == {SHA256}, (
        "also in other processes, whose strings have other hashes"
    )


def test_one_metadata_entry_holds_all_but_the_tensors(path):
    found = {}
    change_header(path, lambda header: found.update(header) or header)
    assert list(found["__metadata__"]) == ["checkpoint"]
    assert json.loads(found["__metadata__"]["checkpoint"]) == ABOUT


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, samples.Harmful()])
def test_files_of_torch_save_are_refused_and_never_run(path, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(
        InputError,
        match=(
            r"not a checkpoint of this pipeline \(its header claims [\d,]+ bytes, the file "
            r"holds "
        ),
    ):
        load(path)
    assert not Path("harmed").exists()


def test_a_header_is_no_larger_than_the_file_or_the_limit(path, monkeypatch):
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for content, claimed in (
        (b"", 0),
        (b"\1", 1),
        (whole[: 8 + length - 1], length),
        (b"\xff" * 8 + whole[8:], 2**64 - 1),
    ):
        path.write_bytes(content)
        refused(path, f"its header claims {claimed:,} bytes, the file holds {len(content):,}")
    path.write_bytes(whole)
    monkeypatch.setattr(checkpoints, "MAX_HEADER", length - 1)
    refused(path, f"its header claims {length:,} bytes, the file holds {len(whole):,}")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[1]",
        b"7",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"a": 1}',
        b'{"__metadata__": 1}',
    ],
)
def test_a_header_that_is_no_sound_json_is_refused(path, raw):
    change_header(path, lambda _: raw)
    refused(path, "is it whole?")


def test_a_name_that_stands_twice_is_refused(path):
    change_header(path, lambda header: json.dumps(header).replace('"1.bias"', '"0.bias"').encode())
    refused(path, "its header has a name twice")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "resnet-checkpoint/1"}, "another format"),
        ({"architecture": 7}, "values of other types"),
        ({"class_names": {"a": 1}}, "values of other types"),
        ({"class_names": [1]}, "values of other types"),
        ({"provenance": [1]}, "values of other types"),
        ({"provenance": {"a": None}}, "values of other types"),
        ({"surprise": 1}, "is it whole?"),
        ({"state_dict": {}}, "is it whole?"),
    ],
)
def test_other_values_in_the_metadata_are_refused(path, change, reason):
    metadata = {"checkpoint": json.dumps(ABOUT | change)}
    change_header(path, lambda header: header | {"__metadata__": metadata})
    refused(path, reason)


@pytest.mark.parametrize("text", ["", "7", "null", "[1]", "{", "[" * 100_000])
def test_metadata_that_is_no_sound_json_is_refused(path, text):
    change_header(path, lambda header: header | {"__metadata__": {"checkpoint": text}})
    refused(path, "is it whole?")


@pytest.mark.parametrize(
    "change",
    [
        {"0.bias": {"dtype": "F16", "shape": [2], "data_offsets": [0, 8]}},
        {"0.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}},
        {"0.bias": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}},
        {"more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
    ],
)
def test_tensors_of_another_architecture_are_refused(path, change):
    change_header(path, lambda header: header | change)
    with pytest.raises(
        InputError,
        match=r"its tensors are not those of a resnet18; run `python -m pipeline discard",
    ):
        load(path)


@pytest.mark.parametrize("offsets", [[0, 4], [4, 12], [8, 0], [-8, 0], [0, 2**63], [0], "x", None])
def test_tensors_with_wrong_offsets_are_refused(path, offsets):
    change_header(
        path,
        lambda header: header | {"0.bias": {"dtype": "F32", "shape": [2], "data_offsets": offsets}},
    )
    refused(path, "is it whole?")


def test_a_file_with_other_tensors_than_its_header_is_refused(path):
    whole, wanted = path.read_bytes(), sum(tensor.nbytes for tensor in tiny().state_dict().values())
    for content, found in ((whole[:-1], wanted - 1), (whole + b"\0", wanted + 1)):
        path.write_bytes(content)
        refused(path, f"expected {wanted:,} bytes of tensors, found {found:,}")


def test_a_machine_without_memory_is_told_apart_from_damage(path, monkeypatch):
    def full(_):
        raise MemoryError

    monkeypatch.setattr(checkpoints.safetensors, "load", full)
    with pytest.raises(
        InputError, match=r"not enough memory to read it; free some memory and run this again$"
    ):
        load(path)


def test_models_that_do_not_fit_are_refused(path, tmp_path):
    with pytest.raises(
        InputError, match=r"expected a resnet50, as model.architecture says, found a resnet18"
    ):
        networks.load(path, architecture="resnet50", class_names=NAMES)
    with pytest.raises(
        InputError, match=r"expected the 2 classes of the data, found a model for 3 other ones"
    ):
        networks.load(path, architecture="resnet18", class_names=("a", "b"))
    with pytest.raises(InputError, match=r"no such model; `dvc repro` trains it"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(
        InputError,
        match=r"expected a plain file, found a folder, pipe or device; `dvc repro` makes it again",
    ):
        load(tmp_path)
