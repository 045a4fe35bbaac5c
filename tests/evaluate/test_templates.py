"""The pages of `dvc plots show` draw one line for each sweep and each attack."""

import csv
import json
import re
from pathlib import Path

import pytest
from dvc_render.vega import VegaRenderer
from ruamel.yaml import YAML

from tests.conftest import ROOT

TEMPLATES = ROOT / ".dvc/plots"
BUILT_IN = {"confusion"}


def drawn():
    """The plots of `evaluate` in dvc.yaml, by the name of their template."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    plots = [next(iter(plot.items())) for plot in stages["evaluate"]["do"]["plots"]]
    return {
        options["template"]: (path, options) for path, options in plots if "template" in options
    }


def test_every_template_is_there():
    assert set(drawn()) - BUILT_IN == {path.stem for path in TEMPLATES.iterdir()}


@pytest.mark.parametrize(
    ("template", "series"), [("sweeps", ["column", "curve"]), ("guesses", ["color", "guess"])]
)
def test_a_template_draws_every_series_with_its_interval(template, series):
    path, options = drawn()[template]
    with Path(ROOT, path.replace("${item}", "refreshed")).open(encoding="utf-8") as file:
        rows = [{**row, "rev": "workspace"} for row in csv.DictReader(file)]
    renderer = VegaRenderer(
        rows, path, template=template, template_dir=str(TEMPLATES), x=options["x"], y=options["y"]
    )
    filled = renderer.get_filled_template()
    text = json.dumps(filled)
    assert "<DVC_METRIC" not in text
    assert filled["data"]["values"] == rows
    shown = {**filled["facet"], **filled["spec"]["encoding"]}
    assert shown[series[0]]["field"] == series[1]
    made = {each["as"]: each["calculate"] for each in filled["transform"]}
    assert made["at"] == f"toNumber(datum['{options['x']}'])"
    assert made["found"] == f"toNumber(datum['{options['y']}'])"
    fields = set(re.findall(r'"field": "(\w+)"', text))
    assert fields - set(made) <= set(rows[0])
    assert {"low", "high"} <= fields
