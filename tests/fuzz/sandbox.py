"""A folder in which files are read, and a watch over what reading does outside of it."""

import os
import random
import sys
from pathlib import Path

from PIL import Image

from pipeline.base.errors import InputError
from tests import inspector
from tests.fuzz.mutations import mutate

TOUCHES = (
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "pickle.find_class",
    "ctypes.",
    "tempfile.",
    "webbrowser.",
    "ftplib.",
    "urllib.",
)
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.add_dll_directory", "os.putenv")


class Sandbox:
    """Reads inputs with one reader; `read` says what came of it, and raises nothing."""

    def __init__(self, reader, folder):
        self.reader, self.folder = reader, Path(folder)
        self.path = self.folder / "in" / "b" / reader.name
        self.path.parent.mkdir(parents=True)
        if reader.kind == "image":  # the other class of the folder
            (self.folder / "in" / "a").mkdir()
            Image.new("RGB", (8, 8)).save(self.folder / "in" / "a" / "whole.png")
        self.examples = reader.examples()
        self._touched, self._reading = [], False
        sys.addaudithook(self._watch)

    def example(self, name):
        """The input that a name, such as a seed and a number, stands for."""
        rng = random.Random(name)
        return mutate(rng.choice(self.examples), self.examples, self.reader.kind, rng)

    def read(self, content):
        """Return `read`, `refused`, or what went wrong.

        Three things are wrong: any other kind of error, a message of several lines, and anything
        touched elsewhere.
        """
        self.path.write_bytes(content)
        before, self._touched, self._reading = self._listing(), [], True
        try:
            self.reader.read(self.path)
            found = "read"
        except InputError as error:
            found = "refused" if str(error).isprintable() else f"not printable: {str(error)!a}"
        except BaseException as error:
            found = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            self._reading = False
        if self._touched or self._listing() != before:
            return f"touched {self._touched or sorted(self._listing() ^ before)}"
        return found

    def _listing(self):
        return {path for folder, _, names in os.walk(self.folder) for path in [folder, *names]}

    def _is_own(self, arguments):
        """Whether an event is about a path in this folder, where `_listing` sees what is left."""
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else ""
        in_opened_folder = isinstance(arguments[-1], int) and arguments[-1] > 2
        return path.startswith(str(self.folder)) or (in_opened_folder and "/" not in path)

    def _watch(self, event, arguments):
        if not self._reading or (arguments and self._is_own(arguments)):
            return
        if event == "open":
            path, mode, flags = arguments
            written = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                if isinstance(flags, int)
                else set(mode or "") & set("wax+")
            )
            if written and isinstance(path, str | bytes | os.PathLike) and path != os.devnull:
                self._touched.append(f"open {path} {mode} {flags}")
        elif (
            event.startswith(TOUCHES)
            and event not in HARMLESS
            and not (
                event.startswith(("subprocess.", "os.posix_spawn"))
                and inspector.PROGRAM in arguments[1]
            )
        ):
            self._touched.append(f"{event} {str(arguments)[:200]}")
