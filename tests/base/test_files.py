import hashlib
from types import SimpleNamespace

import pytest

from pipeline.base import files
from pipeline.base.errors import InputError


def test_contents_replace_each_other_whole(tmp_path):
    path = tmp_path / "sub" / "x.bin"
    for content in (b"first", b"second and longer"):
        files.write_bytes(path, content)
        assert path.read_bytes() == content
        assert files.sha256(path) == hashlib.sha256(content).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    files.write_bytes(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_json_and_csv_are_plain(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 0.5, "b": ["é", None]})
    assert (
        tmp_path / "x.json"
    ).read_text() == '{\n  "a": 0.5,\n  "b": [\n    "é",\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "y.json", {"a": float("nan")})
    assert not (tmp_path / "y.json").exists()
    files.write_csv(tmp_path / "x.csv", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'
    files.write_csv(tmp_path / "x.csv", [], ["a", "b"])
    assert (tmp_path / "x.csv").read_text() == "a,b\n"


def test_results_are_read_with_numbers_and_named_if_damaged(tmp_path):
    files.write_csv(tmp_path / "x.csv", [{"actual": 7, "n": 2, "accuracy": 0.5, "steps": None}])
    assert files.read_csv(tmp_path / "x.csv") == [
        {"actual": "7", "n": 2, "accuracy": 0.5, "steps": ""}
    ]
    files.write_json(tmp_path / "x.json", {"sha256": "a"})
    assert files.read_json(tmp_path / "x.json", "sha256") == {"sha256": "a"}
    for text, problem in (("", ""), ("3", ""), ("{}", r" \(no sha256\)")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=rf"cannot be read{problem}; `dvc repro` makes it$"):
            files.read_json(tmp_path / "x.json", "sha256")
    (tmp_path / "x.csv").write_bytes(b"\xff")
    for name in ("x.csv", "y.csv"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read; `dvc repro` makes it$"):
            files.read_csv(tmp_path / name)


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    files.require_space(tmp_path / "not/yet/there", 1, "the set")
    with pytest.raises(
        InputError,
        match=r"the set needs 1,073,741,824 MiB, and the disk has [\d,]+ MiB left; free some space",
    ):
        files.require_space(tmp_path / "not/yet/there", 2**50, "the set")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20 - 2))
    with pytest.raises(InputError, match="the set needs 1 MiB, and the disk has 0 MiB left"):
        files.require_space(tmp_path / "not/yet/there", 2**20 - 1, "the set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (
            OSError(
                "Can't write data (file write failed: errno = 28, error message = 'No space left "
                "on device')"
            ),
            True,
        ),
        (OSError(5, "Input/output error"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_or_by_what_hdf5_says(error, full):
    assert files.is_full_disk(error) == full
