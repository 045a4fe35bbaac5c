"""The preset that a page compares the params with."""

from types import SimpleNamespace

import pytest

from pipeline import presets
from pipeline.report import origins


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff"])
def test_presets_that_cannot_be_read_are_not_compared(tmp_path, monkeypatch, content):
    quickstart = (presets.FOLDER / "quickstart.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    presets.FOLDER.mkdir()
    (presets.FOLDER / "quickstart.yaml").write_bytes(quickstart)
    (presets.FOLDER / "mine.yaml").write_bytes(content)
    project = SimpleNamespace(values={**presets.values("quickstart"), "seed": 1})
    assert origins.preset_differences(project) == ("quickstart", [("seed", "0", "1")])
