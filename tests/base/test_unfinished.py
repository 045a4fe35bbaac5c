from pathlib import Path

import pytest

from pipeline.base import unfinished


def test_a_name_depends_on_everything_that_decides_the_content(monkeypatch):
    out = Path("models/robust.safetensors")
    names = {
        unfinished.path_for(out, decides) for decides in ({"lr": 1}, {"lr": 2}, {"lr": 1, "x": ""})
    }
    assert len(names) == 3
    assert unfinished.path_for(out, {"a": 1, "b": 2}) == unfinished.path_for(out, {"b": 2, "a": 1})
    before = unfinished.path_for(out, {})
    assert before.parent == Path("models")
    assert before.name.startswith(".robust.safetensors.")
    monkeypatch.setattr(unfinished, "code_sha256", lambda: "other code")
    assert unfinished.path_for(out, {}) != before


@pytest.mark.parametrize("nothing", [True, False])
def test_what_was_left_behind_is_found_and_cleared(tmp_path, nothing):
    (tmp_path / "data/clean").mkdir(parents=True)
    (tmp_path / "data/clean/00000.h5").write_bytes(b"x")
    if not nothing:
        (tmp_path / "data/.clean.0123456789abcdef.part").mkdir()
        (tmp_path / "data/.clean.0123456789abcdef.part/00000.h5").write_bytes(b"x")
        (tmp_path / "data/.robust.safetensors.0123456789abcdef.part").write_bytes(b"x")
        (tmp_path / "models").mkdir()
        (tmp_path / "models/.a.json.new.part").write_bytes(b"x")
        (tmp_path / "data/.a.tar.12ab_678.part").mkdir()
    own = [tmp_path / f"data/{name}" for name in (".train.zip.part", ".x.download.part")]
    for path in own:
        path.write_bytes(b"the user's own")
    found = unfinished.left_behind(tmp_path / folder for folder in unfinished.FOLDERS)
    assert not set(own) & set(found)
    for path in own:
        path.unlink()
    assert len(found) == (0 if nothing else 4)
    unfinished.clear(found)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "data/clean/00000.h5"
    ]
