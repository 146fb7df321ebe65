"""The members of a zip file, each read where it lies: from memory that is mapped, never to the disk.

Python's `zipfile` reads the directory. What it leaves to its caller is done here: limits on what is declared, members
that share bytes, and a look at stored members without a copy. Source: APPNOTE.TXT 6.3 of PKWARE.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tinyvit.pretrained.containers.weights import WeightsError, check_growth, quoted

MAX_DIRECTORY = 2**22  # bytes; the directory of 40,000 arrays
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of which only the lengths of what follows it are not in the directory too


class Archive:
    """A zip file whose directory is sound.

    Raises:
        WeightsError: it is damaged, declares more than such a file can hold, or has members that are encrypted, packed
            by something else than deflate, or lie in one another's bytes.
    """

    def __init__(self, path: Path, data: memoryview) -> None:
        try:
            with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (WeightsError, MemoryError):
            raise
        except Exception as error:  # a damaged directory makes zipfile and struct raise half a dozen types
            raise WeightsError(f"it is a damaged or incomplete zip file ({error}); fetch it again") from error
        check_growth(sum(member.file_size for member in members), len(data))
        self._data = data
        self.file_size = len(data)
        self._members = {member.filename: member for member in members}
        self._begins = {name: self._begin(member) for name, member in self._members.items()}
        self._sound: set[str] = set()
        if len(self._members) != len(members):
            raise WeightsError("it has two members of one name")
        self._check_apart()

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Return how many bytes a member has, unpacked."""
        return self._members[name].file_size

    def head(self, name: str, size: int) -> bytes:
        """Return a member's first bytes, at most `size`, unchecked."""
        raw = self._raw(name)[:size]
        return bytes(raw) if self._members[name].compress_type == zipfile.ZIP_STORED else _inflated(name, raw, size)

    def read(self, name: str) -> bytes | memoryview:
        """Return a member's bytes, checked: those of a stored one are a view of the file."""
        member = self._members[name]
        packed = member.compress_type == zipfile.ZIP_DEFLATED
        content = _inflated(name, self._raw(name), member.file_size + 1) if packed else self._raw(name)
        if len(content) != member.file_size:
            raise WeightsError(f"{quoted(name)} has another size than the zip file's directory says")
        if name not in self._sound and member.CRC and zlib.crc32(content) != member.CRC:  # 0: PyTorch was told not to
            raise WeightsError(f"the checksum of {quoted(name)} does not match: it is damaged; fetch the file again")
        self._sound.add(name)
        return content

    def _begin(self, member: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin."""
        name, at = member.filename, member.header_offset
        if member.flag_bits & 1:
            raise WeightsError(f"{quoted(name)} is encrypted; unpack it first")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{quoted(name)} is packed by method {member.compress_type}; pack it anew with deflate")
        if not 0 <= at <= len(self._data) - LOCAL_HEADER.size:
            raise WeightsError(f"{quoted(name)} lies outside of the file, which is damaged or cut short")
        signature, name_size, extra_size = LOCAL_HEADER.unpack_from(self._data, at)
        if signature != b"PK\3\4":
            raise WeightsError(f"{quoted(name)} is not where the zip file's directory says; fetch the file again")
        return at + LOCAL_HEADER.size + int(name_size) + int(extra_size)

    def _check_apart(self) -> None:
        at = 0
        for name in sorted(self._members, key=lambda name: self._members[name].header_offset):
            if self._members[name].header_offset < at:
                raise WeightsError(f"{quoted(name)} lies within another member, as in a zip bomb")
            at = self._begins[name] + self._members[name].compress_size
        if at > len(self._data):
            raise WeightsError("a member reaches past the end of the file, which is damaged or cut short")

    def _raw(self, name: str) -> memoryview:
        begin = self._begins[name]
        return self._data[begin : begin + self._members[name].compress_size]


def _inflated(name: str, raw: memoryview, size: int) -> bytes:
    """The first bytes, at most `size`, of what was deflated."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, size)
    except zlib.error as error:
        raise WeightsError(f"{quoted(name)} is damaged ({error}); fetch the file again") from error


class _Bounded(io.FileIO):
    """A file of which `zipfile` reads the directory, but no directory that would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        unlimited = size is None or size < 0
        content = super().read(MAX_DIRECTORY + 1 if unlimited else min(size or 0, MAX_DIRECTORY + 1))
        if len(content) > MAX_DIRECTORY:
            raise WeightsError(f"its zip directory has more than {MAX_DIRECTORY:,} bytes, as that of no model has")
        return content
