"""Examines an HDF5 file in a process of its own.

`pipeline.base.untrusted.hdf5` starts this script for each look at a file. libhdf5 is written in C
and trusts much of what a file says. Damaged files make it crash, loop endlessly or allocate what
they ask for. Here this ends a process that does nothing else, with bounded memory and time.

The arguments are the folders of modules. Standard input is the request, a JSON object. Standard
output is the answer as JSON: null for a file that is safe to read, text for what was found, or an
object. The object is {"unavailable": text} for what was found where that shows no damage, or
{"contents": …} for a request that asks for them.
"""

import json
import os
import sys
from typing import Any

if __name__ == "__main__":  # isolated, without the folders of modules that only a user has
    sys.path[:] = [*sys.argv[1:], __file__.rsplit("/", 4)[0]]

from pipeline.base.untrusted import hdf5_bounds, hdf5_chunks, hdf5_links, hdf5_storage

Answer = str | dict[str, Any] | None


def main() -> None:
    hdf5_bounds.bound_process()
    hdf5_bounds.more_time()
    print(json.dumps(examine(json.load(sys.stdin))))


def examine(request: dict[str, Any]) -> Answer:
    """Return the answer to a request, None if the file is safe to read.

    `request` holds `path`, the names of the `datasets` that will be read, those of them that may be
    `texts`, and `memory`, the bytes that may be filled. With `contents` it asks for the list of
    datasets instead.
    """
    try:
        with hdf5_bounds.open_file(request["path"]) as file:
            if request.get("contents"):
                return {"contents": hdf5_links.contents(file)}
            _examine_datasets(file, request)
    except hdf5_bounds.Refusal as refusal:
        return str(refusal)
    except MemoryError:
        return {
            "unavailable": f"refused: it takes more than {hdf5_bounds.MEMORY:,} bytes to look "
            "through; free some memory and run this again"
        }
    except Exception as error:  # h5py raises errors of every kind for libhdf5
        if reason := hdf5_bounds.unavailable(error):
            return {"unavailable": reason}
        return f"not a readable HDF5 file, perhaps cut short ({' '.join(str(error).split())[:200]})"
    return None


def _examine_datasets(file: Any, request: dict[str, Any]) -> None:
    size = os.path.getsize(request["path"])  # noqa: PTH202 - importing pathlib slows every start
    for name in request["datasets"]:
        hdf5_bounds.more_time()
        dataset = hdf5_links.find(file, name)
        if dataset is None:  # its reader says so, and lists the names that there are
            hdf5_links.names(file["/"].id)
            continue
        path, text = "/" + name.strip("/"), name in request.get("texts", ())
        chunks = hdf5_storage.check(
            path, dataset, text=text, file_size=size, memory=request["memory"]
        )
        hdf5_chunks.read(path, dataset, chunks)


if __name__ == "__main__":
    main()
