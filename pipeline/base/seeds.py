"""Seeds that depend on several numbers."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


def batch_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers and differs for neighbours (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
