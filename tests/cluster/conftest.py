import pytest

from pipeline.cluster import connection


@pytest.fixture(scope="module")
def loopback():
    """Ray listens on this machine alone, and its workers are as urgent as the tests."""
    own = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**connection.QUIET, **connection.LOOPBACK, **own}.items():
            patch.setenv(name, value)
        yield
