"""Some changed files for every reader, and every file that ever broke something.

`make fuzz` reads 10,000 for each reader.
"""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import worker
from tests.fuzz.readers import READERS
from tests.fuzz.sandbox import Sandbox

KEPT = sorted(path for path in (Path(__file__).parent / "kept").glob("*/*") if path.is_file())
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_inspector")]


@pytest.fixture(scope="module", params=READERS)
def sandbox(request, tmp_path_factory):
    return Sandbox(READERS[request.param], tmp_path_factory.mktemp(request.param))


def test_the_fuzzer_guides_modules_that_exist():
    assert worker.GUIDED.keys() == READERS.keys()
    for module in {name for names in worker.GUIDED.values() for name in names}:
        assert importlib.util.find_spec(module), module


def test_unchanged_files_are_read(sandbox):
    assert [sandbox.read(example) for example in sandbox.examples] == ["read"] * len(
        sandbox.examples
    )


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**40))
def test_changed_files_are_read_or_refused(sandbox, number):
    assert sandbox.read(sandbox.example(str(number))) in ("read", "refused")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_once_broke_something_is_read_or_refused(path, tmp_path):
    assert Sandbox(READERS[path.parent.name], tmp_path).read(path.read_bytes()) in (
        "read",
        "refused",
    )
