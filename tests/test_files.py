import hashlib

import pytest

from pipeline import files


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
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 0.5,\n  "b": [\n    "é",\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "y.json", {"a": float("nan")})
    assert not (tmp_path / "y.json").exists()
    files.write_csv(tmp_path / "x.csv", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'
    files.write_csv(tmp_path / "x.csv", [], ["a", "b"])
    assert (tmp_path / "x.csv").read_text() == "a,b\n"
