"""Connect to the Ray cluster that `PIPELINE_CLUSTER` names, quietly and within a bounded time."""

import importlib.util
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.errors import InputError

VARIABLE = "PIPELINE_CLUSTER"
REACHED = 10.0  # seconds in which the cluster's head must accept a connection
CODE = Path(__file__).parent.parent
# Ray reads them when it is imported. A run reports nothing to Ray's authors.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# Only this machine can reach a cluster that is started for one run. Ray runs what it is sent.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def wanted() -> str | None:
    """Return the cluster that the environment asks for, or None for this process alone.

    The cluster is `local`, `auto` or `ray://HOST:PORT`. Raises InputError for anything else, and
    where Ray is not installed.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        return None
    if name not in ("local", "auto") and not re.fullmatch(r"ray://[^/:\s]+:\d+", name):
        raise InputError(
            f"{VARIABLE}: no such cluster (expected local, auto or ray://HOST:PORT,"
            f" found {name!r}). Unset it to use this process alone."
        )
    if importlib.util.find_spec("ray") is None:
        raise InputError(f"{VARIABLE}: Ray is not installed. Run `make cluster`.")
    return name


@contextmanager
def connected(name: str) -> Iterator[None]:
    """Connect to a cluster that `wanted` returned, and disconnect when the block ends.

    The project's code travels to the nodes, which need only its environment. Raises InputError if
    the cluster cannot be reached.
    """
    os.environ.update({**QUIET, **(LOOPBACK if name == "local" else {})})
    import ray

    if name != "local":
        _expect_reachable(name)
    handlers = _handlers()
    try:
        ray.init(
            address=name,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"py_modules": [str(CODE)], "env_vars": _variables()},
            **_local_cluster(name),
        )
    except (OSError, RuntimeError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        raise InputError(
            f"{VARIABLE}: {name}: cannot connect ({found}). Check it with `ray status`,"
            " under the same RAY_AUTH_MODE."
        ) from error
    _restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()


def last_line(error: Exception) -> str:
    """Return the last line of an error, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _local_cluster(name: str) -> dict[str, object]:
    """Return what a cluster of this machine alone is started with: the cores it may use."""
    if name != "local":
        return {}
    return {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}


def _variables() -> dict[str, str]:
    """Return the project's variables, which workers read too. Devices are given to each task."""
    return {
        key: value
        for key, value in os.environ.items()
        if key.startswith("PIPELINE_") and key != "PIPELINE_DEVICE" and VARIABLE not in key
    }


def _expect_reachable(name: str) -> None:
    """Raise InputError unless the cluster's head accepts a connection. Ray would wait minutes."""
    from ray._private import services

    try:
        address = (
            services.canonicalize_bootstrap_address_or_die("auto") if name == "auto" else name[6:]
        )
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        raise InputError(
            f"{VARIABLE}: {name}: cannot be reached ({found}). Start it with `ray start --head`,"
            " or unset the variable to use this process alone."
        ) from error


def _handlers() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _restore(handlers: dict[signal.Signals, object]) -> None:
    """Restore the handlers of signals that Ray replaces in the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
