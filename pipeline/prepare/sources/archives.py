"""Unpack an archive of images, and delete what was unpacked when the process ends."""

import atexit
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from platform import python_version
from tempfile import mkdtemp

from pipeline.base import files, unfinished
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.sources.folder_layout import entered

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 5_000_000
REMEDY = "unpack it yourself and set data.path to the folder"
# zipfile and tarfile raise these for files that are cut short, damaged or of another kind.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    NotImplementedError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and not path.is_dir()


def unpacked(path: Path) -> Path:
    """Return a folder with the contents of an archive, beside the archive.

    A single folder is entered, unless there are images beside it. The folder is deleted when this
    process ends. Raises InputError for an archive that is damaged or too large, or that would write
    elsewhere.
    """
    limits.regular(path, "set data.path to the archive of your images")
    try:
        # Other processes may read the same archive at the same time.
        folder = Path(mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        atexit.register(unfinished.clear, [folder])
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        (_unpack_zip if is_zip else _unpack_tar)(path, folder)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be unpacked ({reason}); {REMEDY}") from error
    return entered(folder)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let errors about unpacked files name the archive, in place of the folder that goes away."""
    try:
        yield
    except InputError as error:
        folder = re.escape(f"{path.parent / f'.{path.name}.'}") + r"\w+\.part"
        text = re.sub(folder, str(path).replace("\\", r"\\"), str(error))
        advice = "; for that, unpack the archive first" if "set data.path" in text else ""
        raise InputError(f"{text}{advice}") from error


def _unpack_zip(path: Path, folder: Path) -> None:
    with path.open("rb") as file:
        archive, members = limits.zip_members(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        # Old tools of Windows separate folders by backslashes, which zipfile keeps.
        for member in members.values():
            member.filename = member.filename.replace("\\", "/")
        names = Counter(member.filename for member in members.values())
        if (twice := names.most_common(1)) and twice[0][1] > 1:
            raise InputError(f"refused: it holds {twice[0][0][:100]!a} twice; {REMEDY}")
        _check(folder, ((member.filename, member.file_size) for member in members.values()))
        for member in members.values():
            archive.extract(member, folder)


def _unpack_tar(path: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise InputError(
            f"refused: a tar needs Python 3.11.4 or newer, found {python_version()}; {REMEDY}"
        )
    with tarfile.open(path) as archive:
        _check(folder, ((member.name, member.size) for member in archive))
        archive.extractall(folder, filter="data")


def _check(folder: Path, members: Iterable[tuple[str, int]]) -> None:
    """Raise InputError for names that lead out of the folder, and for more than the disk holds."""
    total = 0
    for number, (name, n_bytes) in enumerate(members):
        if not name:
            raise InputError(f"refused: it holds a file without a name; {REMEDY}")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"refused: it holds {name[:100]!a}, which leads out of its folder")
        total += n_bytes
        if number >= MAX_MEMBERS:
            raise InputError(f"refused: it holds more than {MAX_MEMBERS:,} files; {REMEDY}")
        if number % 1000 == 0 or n_bytes > 2**20:
            files.require_space(folder, total, "its contents")
    files.require_space(folder, total, "its contents")
