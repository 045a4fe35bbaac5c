import numpy as np

from benchmarks import paired


def test_images_that_both_get_right_or_wrong_do_not_widen_the_interval():
    one, other = np.zeros(1000, bool), np.zeros(1000, bool)
    one[:500] = other[:500] = True
    one[500:530] = other[530:550] = True
    (row,) = paired.rows({"pgd": one}, {"pgd": other})
    assert row == {
        "accuracy": "pgd",
        "first, %": "53.0",
        "second, %": "52.0",
        "second - first, points": "-1.0 ±1.4",
        "only first": 30,
        "only second": 20,
    }
