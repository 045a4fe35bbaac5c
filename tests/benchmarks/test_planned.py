import json
import os

import pytest

from benchmarks import planned
from pipeline.base import costs, remaining
from pipeline.base.errors import InputError
from pipeline.plan import rates


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a plan of three stages, which ran after it, and one that ran before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rates, "start_up", lambda modules: 1.0 if "prepare" in modules else 3.0)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    remaining.keep({"train_clean": 40, "finetune@robust": 80, "prepare": 1, "export": 100})
    ran = {"train_clean": 50, "finetune@robust": 70, "prepare": 3, "export": 30}
    for number, (stage, seconds) in enumerate(ran.items(), 1):
        path = costs.FOLDER / f"{stage}.json"
        path.write_text(json.dumps({"seconds": seconds}))
        made = remaining.FILE.stat().st_mtime + (-9 if stage == "export" else number)
        os.utime(path, (made, made))


def test_long_stages_that_ran_since_the_plan_are_compared(project, capsys):
    assert planned.main() == "the plan is right within 25% for 2 stages"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| train_clean | 40 | 53 | -25 |", "| finetune@robust | 80 | 73 | 10 |"]


def test_a_plan_that_is_wrong_is_an_error(project):
    remaining.keep({**remaining.kept(), "train_clean": 80})
    (costs.FOLDER / "train_clean.json").write_text('{"seconds": 50}')
    with pytest.raises(InputError, match=r"wrong by more than 25%: train_clean$"):
        planned.main()


def test_what_is_missing_is_named(project):
    remaining.keep(remaining.kept())
    for path in costs.FOLDER.glob("[!p]*.json"):
        os.utime(path, (0, 0))
    with pytest.raises(InputError, match="run make repro"):
        planned.main()
    remaining.FILE.unlink()
    with pytest.raises(InputError, match="run make plan"):
        planned.main()
