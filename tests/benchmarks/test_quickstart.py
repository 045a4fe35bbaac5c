from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import quickstart
from pipeline import presets
from tests.conftest import ROOT


def test_the_last_stage_of_both_ways_is_one_of_the_quickstart():
    stage, _, name = quickstart.STAGE.partition("@")
    stages = YAML(typ="safe").load(Path(ROOT, "dvc.yaml"))["stages"]
    params = YAML(typ="safe").load(presets.complete("quickstart"))
    assert stage in stages
    assert params["finetuned"][name]["of"] == "clean"
    assert params["finetuned"][name]["refresh"] is None
