"""Looks at many HDF5 files in one process, as tests with thousands of small files need.

The pipeline starts a process for each look. That takes longer than such a file does.
"""

import json
import subprocess
import sys

from pipeline.base.untrusted import hdf5, hdf5_bounds, hdf5_inspector

PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from tests import inspector; inspector.main()"


class Inspector:
    """The process that answers requests; it is started again after a file ended it."""

    def __init__(self):
        self.process = None

    def answer(self, request):
        """Return the answer to a request, as `hdf5._answer` does."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        return hdf5._ended(self.close(), "")

    def close(self):
        """End the process, and return its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.communicate()
        return process.returncode


def main():
    hdf5_bounds.bound_process()
    for line in sys.stdin:
        hdf5_bounds.more_time()
        print(json.dumps(hdf5_inspector.examine(json.loads(line))), flush=True)
