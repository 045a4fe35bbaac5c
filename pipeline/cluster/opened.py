"""Open the workers that the environment asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, Union

from pipeline.cluster import connection
from pipeline.cluster.here import Here
from pipeline.networks import device

if TYPE_CHECKING:
    from pipeline.cluster.nodes import Nodes

Workers: TypeAlias = Union[Here, "Nodes"]


@contextmanager
def opened() -> Iterator[Workers]:
    """Yield this process, or the cluster that `PIPELINE_CLUSTER` names, as workers."""
    name = connection.wanted()
    if name is None:
        yield Here(device.choose())
        return
    with connection.connected(name):
        from pipeline.cluster.nodes import Nodes

        yield Nodes()
