import pytest

from pipeline.cluster import connection


@pytest.fixture(scope="module")
def loopback():
    """Ray listens on this machine alone, and computes with one thread."""
    own = {"OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**connection.QUIET, **connection.LOOPBACK, **own}.items():
            patch.setenv(name, value)
        yield
