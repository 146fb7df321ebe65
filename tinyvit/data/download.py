"""Downloading a file of known size and digest: resumed, from the next mirror if need be, checked, then renamed."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tinyvit.data.datasets import DataError

try:
    import fcntl
except ImportError:  # Windows: two processes must not download the same set at once
    fcntl = None  # type: ignore[assignment]

TIMEOUT = 10.0  # seconds without a connection, an answer or a single byte
CHUNK = 1 << 18
TRIES = 5  # at one mirror, as long as each brings some bytes


def in_bytes(size: int) -> str:
    """Return a size to read.

    >>> in_bytes(9912422), in_bytes(28881)
    ('9.9 MB', '28.9 kB')
    """
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


@dataclass(frozen=True)
class RemoteFile:
    """A file to be had somewhere: its name, its size in bytes and its SHA-256 digest in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass
class _Mirror:
    """An address of the file, and its server's own mark (ETag) of the version that it sends."""

    url: str
    version: str = ""


class _Failed(Exception):  # noqa: N818 - it never leaves this file
    """A transfer that ended early; the message says why."""


def download(file: RemoteFile, folder: Path, mirrors: Sequence[str]) -> Path:
    """Bring a file into a folder, which is made; a file of that name that is there already is left alone.

    It is written to ``NAME.part``, which is kept where a transfer breaks off, and gone on with the next time.
    Only with the right size and digest does it become ``NAME``. A second process waits for the first.

    Args:
        file: what it is to be.
        folder: where it is to go.
        mirrors: the addresses of folders, each ending in ``/``, in the order in which they are tried.

    Raises:
        DataError: where no mirror gives the file; it names the reasons.
        OSError: where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    with _alone(folder):
        if path.exists():
            return path
        failures = []
        for mirror in mirrors:
            try:
                _from_mirror(_Mirror(mirror + file.name), file, path.with_name(f"{file.name}.part"))
            except _Failed as failed:
                failures.append(f"{mirror + file.name}: {failed}")
            else:
                path.with_name(f"{file.name}.part").replace(path)
                return path
    raise DataError(f"{file.name} cannot be downloaded ({'; '.join(failures)}); put it into {folder} by hand")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given up when the file is closed, also by a crash
        yield


def _from_mirror(mirror: _Mirror, file: RemoteFile, part: Path) -> None:
    """Complete `part` and check it. What was left by an earlier transfer is used, but not trusted twice."""
    leftover = part.exists() and part.stat().st_size > 0
    _transfer(mirror, file, part)
    if leftover and _sha256(part) != file.sha256:
        part.unlink()
        _transfer(mirror, file, part)
    if (digest := _sha256(part)) != file.sha256:
        part.unlink()
        raise _Failed(f"it has another content (SHA-256 {digest[:12]}…, not {file.sha256[:12]}…)")


def _transfer(mirror: _Mirror, file: RemoteFile, part: Path) -> None:
    for left in reversed(range(TRIES)):
        before = part.stat().st_size if part.exists() else 0
        if before > file.size:
            part.unlink()
            before = 0
        if before == file.size:
            return
        try:
            _continue(mirror, file, part)
        except _Failed:
            # Another try is worth it only at a connection that broke on the way.
            if not left or not part.exists() or part.stat().st_size <= before:
                raise
        else:
            return


def _continue(mirror: _Mirror, file: RemoteFile, part: Path) -> None:
    """Ask for what `part` lacks and write it there, or for all of it where the server has another version by now."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "tinyvit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if mirror.version:
            headers["If-Range"] = mirror.version
    rest = f", all but the first {in_bytes(have)}" if have else ""
    print(f"tinyvit: fetching {mirror.url} ({in_bytes(file.size)}{rest})", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(urllib.request.Request(mirror.url, headers=headers), timeout=TIMEOUT) as response:
            mirror.version = response.headers.get("ETag", "")
            start = _start(response, file, have)
            with part.open("r+b" if start else "wb") as out, _bar(file, start) as bar:
                out.seek(start)
                out.truncate()
                for chunk in _chunks(response):
                    out.write(chunk)
                    bar.update(len(chunk))
                    if out.tell() > file.size:
                        raise _Failed(f"it sends more than {file.size:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # so that the next mirror starts from nothing
            raise _Failed(f"it has no bytes after the first {have:,}") from error
        raise _Failed(f"the server says {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Failed(str(getattr(error, "reason", "") or error or type(error).__name__)) from error
    if (size := part.stat().st_size) < file.size:
        raise _Failed(f"the connection broke after {size:,} of {file.size:,} bytes")


def _start(response: http.client.HTTPResponse, file: RemoteFile, have: int) -> int:
    """Return the place in the file at which the answer begins."""
    length = response.headers.get("Content-Length")
    start, rest = 0, file.size
    if response.status == http.client.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not span or int(span[1]) != have or span[3] not in ("*", str(file.size)):
            raise _Failed(f"it answers with another range: {response.headers.get('Content-Range')}")
        start, rest = have, file.size - have
    if length is not None and int(length) != rest:
        raise _Failed(f"it has {start + int(length):,} bytes, not {file.size:,}")
    return start


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except OSError as error:  # of the network; that of the disk is another matter
            raise _Failed(f"the connection broke: {error or type(error).__name__}") from error
        if not chunk:
            return
        yield chunk


def _bar(file: RemoteFile, start: int) -> tqdm:
    shown = sys.stderr.isatty()
    return tqdm(total=file.size, initial=start, desc=file.name, unit="B", unit_scale=True, disable=not shown)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the folder for downloaded data: ``$TINYVIT_DATA``, else ``tinyvit`` in the user's cache folder."""
    if here := os.environ.get("TINYVIT_DATA"):
        return Path(here)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyvit"
