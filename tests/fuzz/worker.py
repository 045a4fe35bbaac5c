"""`python -m tests.fuzz.worker READER SEED FIRST LAST FOLDER`: read inputs in a process of its own.

An input may end that process. Each answer is a line in FOLDER/answers: number, seconds, outcome.
FOLDER/input holds the input that is being read.
"""

import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

MEMORY, SECONDS = 2**30, 5
BROKEN = 70  # exit status for a mistake of the fuzzer itself


def main():
    name, seed, first, last, folder = (
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        Path(sys.argv[5]),
    )
    atheris = guide(name)
    from pipeline.base.untrusted import hdf5
    from tests.fuzz.readers import READERS
    from tests.fuzz.sandbox import Sandbox
    from tests.inspector import Inspector

    inspector = Inspector()
    hdf5._answer = inspector.answer
    sandbox = Sandbox(READERS[name], folder / f"sandbox-{first}")
    for example in sandbox.examples:
        assert (outcome := sandbox.read(example)) == "read", f"{name}: an unchanged file: {outcome}"
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inspector_baseline = peak_of(inspector.process)
    with Path("/proc/self/statm").open() as statm:
        limit = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = (folder / "answers").open("a", buffering=1)
    number = first

    def one(content):
        nonlocal number
        if number >= last:
            return
        (folder / "input").write_bytes(content)
        signal.setitimer(
            signal.ITIMER_REAL, SECONDS
        )  # nobody handles SIGALRM: it ends the process, in C code too
        started = time.perf_counter()
        outcome = sandbox.read(content)
        seconds = time.perf_counter() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome not in ("read", "refused"):
            (folder / f"failed-{number}").write_bytes(content)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline
        peak = max(own, peak_of(inspector.process) - inspector_baseline) // 1024
        answers.write(f"{number}\t{seconds:.3f}\t{peak}\t{outcome!a}\n")
        number += 1

    import random

    from tests.fuzz.mutations import mutate

    def changed(content, size, mutator_seed):
        """Return what atheris chose, or an example.

        What reached new code is most often damaged so much that it is refused at once.
        """
        rng = random.Random(mutator_seed)
        start = content if content and rng.random() < 0.5 else rng.choice(sandbox.examples)
        return mutate(start, sandbox.examples, sandbox.reader.kind, rng)[:size]

    corpus = folder / f"corpus-{first}"
    corpus.mkdir()
    for index, example in enumerate(sandbox.examples):
        (corpus / str(index)).write_bytes(example)
    options = [
        f"-runs={last - first}",
        f"-seed={seed}",
        "-max_len=1000000",
        "-rss_limit_mb=0",
        "-timeout=0",
        "-handle_alrm=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=changed)
    atheris.Fuzz()


def peak_of(process):
    """KiB that the process which examines HDF5 files took at most; 0 where there is none."""
    if process is None:
        return 0
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) if "VmHWM:" in status else 0


def guide(name):
    """Return atheris, with the modules that decide about this reader's files instrumented.

    They are instrumented before anything imports them.
    """
    from importlib import import_module

    import atheris

    with atheris.instrument_imports(include=list(GUIDED[name])):
        for module in GUIDED[name]:
            import_module(module)
    return atheris


FILES = ("zipfile", "pickle", "pipeline.base.untrusted.limits")
PICKLES = tuple(
    f"pipeline.base.untrusted.{name}"
    for name in ("pickle_names", "pickle_records", "pickles", "torch_files", "torch_arrays")
)
PLUGINS = tuple(
    f"PIL.{kind}ImagePlugin"
    for kind in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP")
)
GUIDED = {
    "params": ("ruamel.yaml", "pipeline.base.params", "pipeline.base.values"),
    "npz": (*FILES, "ast", "numpy.lib._format_impl", "pipeline.prepare.sources.arrays"),
    "npy": ("ast", "numpy.lib._format_impl", "pipeline.prepare.sources.arrays"),
    "archive": (*FILES, "tarfile", "pipeline.prepare.sources.archives"),
    "task_dataset": (
        *FILES,
        *PICKLES,
        "pipeline.prepare.sources.pil_records",
        "pipeline.prepare.sources.task_dataset",
    ),
    "hdf5": (
        "pipeline.base.untrusted.limits",
        "pipeline.base.untrusted.hdf5",
        "pipeline.prepare.sources.hdf5_arrays",
    ),
    "manifest": ("json", "pipeline.base.store.manifest"),
    "image_folder": (
        "PIL.Image",
        "PIL.ImageFile",
        *PLUGINS,
        "pipeline.prepare.sources.image_headers",
        "pipeline.prepare.sources.image_files",
        "pipeline.prepare.sources.folder_layout",
        "pipeline.prepare.sources.image_folder",
    ),
    "checkpoint": ("json", "pipeline.base.untrusted.limits", "pipeline.networks.checkpoint"),
    "weights": (
        *FILES,
        *PICKLES,
        *(f"pipeline.networks.{name}" for name in ("torch_files", "normalisation", "foreign")),
    ),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        main()
    except Exception:
        traceback.print_exc()
        os._exit(BROKEN)  # atheris cannot be left in an orderly way
