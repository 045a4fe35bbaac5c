"""`python -m tests.faults --faults 200`: disturb the pipeline that often and print what came of it."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of their kinds and moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = harness.soak(Path(folder), args.faults, args.seed)
    print(tally)
    sys.exit(bool(tally.lost or tally.different))


if __name__ == "__main__":
    main()
