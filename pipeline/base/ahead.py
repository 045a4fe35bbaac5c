"""Read what is needed next while what was read is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def one_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[tuple[Item, Read]]:
    """Yield every item with what `read` returns for it, in order.

    A thread reads the next item while the caller uses the one before. At most two are in memory.
    What `read` raises is raised when its item is due.
    """
    ahead: tuple[Item, Future[Read]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            ready, ahead = ahead, (item, pool.submit(read, item))
            if ready is not None:
                yield ready[0], ready[1].result()
        if ahead is not None:
            yield ahead[0], ahead[1].result()
