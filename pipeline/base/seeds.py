"""Derives seeds that depend on several numbers."""

import numpy as np


def batch_seed(*numbers: int) -> int:
    """Return a seed that depends on all the numbers and differs for neighbours.

    It comes from NumPy's SeedSequence.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
