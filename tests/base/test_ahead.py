import threading

import pytest

from pipeline.base.ahead import one_ahead


def test_every_item_is_read_in_order():
    assert list(one_ahead(str, [3, 1, 2])) == [(3, "3"), (1, "1"), (2, "2")]
    assert list(one_ahead(str, [])) == []


def test_the_next_item_is_read_while_one_is_used_and_no_more():
    started = [threading.Event() for _ in range(4)]

    def read(item):
        started[item].set()
        return item

    found = one_ahead(read, range(4))
    for item in range(3):
        assert next(found) == (item, item)
        assert started[item + 1].wait(10)
        assert item == 2 or not started[item + 2].is_set()


def test_an_item_that_cannot_be_read_ends_it_when_it_is_due():
    def read(item):
        if item == 1:
            raise OSError("broken")
        return item

    found = one_ahead(read, [0, 1, 2])
    assert next(found) == (0, 0)
    with pytest.raises(OSError, match="broken"):
        next(found)
