"""Where the results of a command go: proved before the work, whole or not there after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from asr.origins import DISK_IS_FULL


class OutputError(ValueError):
    """What `--out` names cannot be written: one line that says why, and what to do."""


def writable_folder(path: Path) -> Path:
    """The folder, made if it is not there, in which files can be made.

    Raises:
        OutputError: it cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()  # permissions alone do not tell: file systems may be read-only
    except (FileExistsError, NotADirectoryError):
        file = next(each for each in (path, *path.parents) if os.path.lexists(each))
        raise OutputError(f"--out {path}: {file} is a file: name a folder") from None
    except OSError as error:
        raise OutputError(
            f"--out {path}: nothing can be written there ({error.strerror}): name another folder"
        ) from None
    return path


@contextmanager
def replacing(path: Path | None) -> Iterator[TextIO | None]:
    """A text file that becomes `path` when all went well; nothing is left of it otherwise. None for None.

    Raises:
        OutputError: there can be no such file.
    """
    if path is None:
        yield None
        return
    if path == Path():  # what an empty word becomes, too
        raise OutputError("--out names no file: give one, as in --out words.txt")
    special = os.path.exists(path) and not os.path.isfile(path)  # unlike Path's, no error in a closed folder
    draft = path if special else path.with_name(f"{path.name}.part")
    try:
        file = draft.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {path}: {_why_not(path, error)}") from None
    try:
        with file:
            yield file
        if not special:
            draft.replace(path)
    except BaseException as error:
        if not special:
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL and not error.filename:  # of a write
            raise OutputError(f"--out {path}: {error.strerror}: free some, or name another place") from None
        raise


def _why_not(file: Path, error: OSError) -> str:
    folder = file.parent
    if os.path.isdir(file):
        return "this is a folder: name a file in it"
    if os.path.isdir(folder):
        return f"nothing can be written into {folder.resolve()} ({error.strerror}): name another folder"
    if isinstance(error, NotADirectoryError):
        return f"{folder} is no folder: name a file in one"
    return f"there is no folder {folder}: make it first (mkdir -p {folder}), or name another"
