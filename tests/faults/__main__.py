"""`python -m tests.faults --kills 200`: kill the pipeline that often and print the outcome.

Other faults disturb it too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import pytest

from tests import narrow, tiny_project
from tests.faults import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many, at least")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the kinds and moments of all faults"
    )
    parser.add_argument(
        "--narrow", action="store_true", help="with a narrow network and coarse pictures"
    )
    args = parser.parse_args()
    if args.narrow:
        narrow.replace_resnet18(pytest.MonkeyPatch())
        tiny_project.coarse_pictures(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as folder:
        tally = harness.soak(Path(folder), args.kills, args.seed)
    print(tally)
    sys.exit(bool(tally.lost or tally.different))


if __name__ == "__main__":
    main()
