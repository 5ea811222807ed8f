"""Read archives of records that somebody sends, in one pass and with limits, before anything in them is trusted.

Python's tarfile reads an extended header at once, whatever size it claims, so this module reads block by block.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NoReturn

from dpbench.errors import DpbenchError
from dpbench.files import open_regular, read_error
from dpbench.records.store import NAME
from dpbench.validation import short

STEPS = "steps.jsonl"
LARGEST = 8 << 20
"""Bytes of one member: a record has kilobytes."""
MEMBERS = 20_000
TOTAL = 512 << 20
"""Bytes of all members and headers together, unpacked."""
RATIO = 100
"""Largest ratio of unpacked to packed bytes, beyond the first 16 MiB: records have about 10."""
_FREE = 16 << 20
_HEADER = 16 << 10  # bytes of an extended header: one with times, as tarfile writes it, has about a hundred
_BLOCK = 512
_PIECE = 1 << 16
_MEMBER = re.compile(rf"([0-9a-f]{{12}})/({re.escape(NAME)}|{re.escape(STEPS)})")
_KEY = re.compile(rb"(\d{1,5}) ([^=]+)=")  # start of an entry of an extended header: its length and its key
_RENAMES = {b"path", b"linkpath", b"size"}  # keys by which an extended header changes the member after it
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.XGLTYPE: "a header for all members",
    tarfile.GNUTYPE_LONGNAME: "a long name",
    tarfile.GNUTYPE_LONGLINK: "a long link",
    tarfile.GNUTYPE_SPARSE: "a file with holes",
}
_COMPLETE = "give a complete .tar.gz of dpbench record"
_FEWER = "pack fewer tables at once (dpbench record --tables)"
_WRITTEN = "give an archive written by dpbench record"


def unpack(archive: Path, folder: Path) -> dict[str, list[str]]:
    """Write an archive's members into `folder`, one at a time; return run -> names of its files.

    Raises:
        DpbenchError: it cannot be read, is empty, damaged or cut, exceeds a limit, contains anything but `<run>/record.json` and
            `<run>/steps.jsonl`, or one of them twice. The caller has to delete the files that were written until then.
    """
    files_of: dict[str, list[str]] = {}
    try:
        with open_regular(archive) as raw:
            for name, content in _Reader(archive, raw).members():
                run, file = name.split("/")
                (folder / run).mkdir(exist_ok=True)
                (folder / run / file).write_bytes(content)
                files_of.setdefault(run, []).append(file)
    except FileNotFoundError as error:
        raise DpbenchError(f"{archive}: cannot be read as an archive (no such file)", _COMPLETE) from error
    except zlib.error as error:
        raise DpbenchError(f"{archive}: cannot be read as an archive ({error})", _COMPLETE) from error
    except (OSError, ValueError) as error:
        raise read_error(archive, error) from error
    if not files_of:
        raise DpbenchError(f"{archive}: holds no record", _WRITTEN)
    return files_of


def pack_files(files: Iterable[tuple[str, bytes, float]]) -> bytes:
    """Return a .tar.gz of files (name, content, time of change in seconds), without a trace of who packed it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for name, content, changed in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), int(changed)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class _Reader:
    """A reader of the members of a tar inside a gzip stream, one after another; it trusts none of them."""

    def __init__(self, archive: Path, raw: IO[bytes]) -> None:
        self._archive = archive
        self._raw = raw
        self._gzip = zlib.decompressobj(wbits=31)
        self._packed = self._unpacked = 0

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of each member; then read the stream to its end, where its checksum is."""
        seen: set[str] = set()
        for number in range(1, 2 * MEMBERS + 2):  # an extended header counts as a member here
            header = self._take(_BLOCK)
            if header == bytes(_BLOCK):
                return self._end()
            member = self._member(header, number)
            if member.type == tarfile.XHDTYPE:
                self._check_extended(self._content(member, _HEADER), number)
                continue
            if _MEMBER.fullmatch(member.name) is None:
                self._refuse(f"unexpected member {short(repr(member.name))}", _WRITTEN)
            if member.name in seen:
                self._refuse(f"{member.name} occurs twice", _WRITTEN)
            seen.add(member.name)
            yield member.name, self._content(member, LARGEST)
        self._refuse(f"more than {MEMBERS} members", _FEWER)

    def _member(self, header: bytes, number: int) -> tarfile.TarInfo:
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            self._refuse(f"cannot be read as an archive (header {number}: {error})", _COMPLETE)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.XHDTYPE):
            kind = _KINDS.get(member.type, "of an unknown kind")
            self._refuse(f"unexpected member {short(repr(member.name))}: {kind}", _WRITTEN)
        return member

    def _content(self, member: tarfile.TarInfo, largest: int) -> bytes:
        if not 0 <= member.size <= largest:
            self._refuse(f"unexpected member {short(repr(member.name))} of {member.size} bytes", f"at most {largest} bytes each")
        content = self._take(member.size)
        self._take(-member.size % _BLOCK)
        return content

    def _check_extended(self, content: bytes, number: int) -> None:
        """Refuse an extended header that changes the next member's name or size; it may have times of change."""
        start = 0
        while start < len(content):
            match = _KEY.match(content, start)
            length = int(match[1]) if match else 0
            if match is None or length < match.end() - start + 1 or content[start + length - 1 : start + length] != b"\n":
                self._refuse(f"cannot be read as an archive (header {number} is damaged)", _COMPLETE)
            if match[2] in _RENAMES or match[2].startswith(b"GNU.sparse"):
                self._refuse(f"header {number} gives the next member another {match[2].decode('ascii', 'replace')}", _WRITTEN)
            start += length

    def _take(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        parts = []
        while size:
            data = self._next(size)
            if not data:
                self._refuse("cannot be read as an archive (it ends too early)", _COMPLETE)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _next(self, most: int) -> bytes:
        """Return at most `most` bytes, none only at the end of the stream, whose checksum zlib has compared by then."""
        data = b""
        while not data and not self._gzip.eof:
            packed = self._gzip.unconsumed_tail or self._raw.read(_PIECE)
            if not packed:
                self._refuse("cannot be read as an archive (it ends too early)", _COMPLETE)
            data = self._gzip.decompress(packed, most)
            self._packed += len(packed) - len(self._gzip.unconsumed_tail)
        self._unpacked += len(data)
        if self._unpacked > TOTAL:
            self._refuse(f"unpacks to more than {TOTAL >> 20} MiB", _FEWER)
        if self._unpacked > _FREE and self._unpacked > RATIO * self._packed:
            self._refuse(f"unpacks to more than {RATIO} times its size", _WRITTEN)
        return data

    def _end(self) -> None:
        """Read to the end of the stream; refuse anything but the zeros that tar pads with, and anything after the end."""
        while data := self._next(_PIECE):
            if data.strip(b"\0"):
                self._refuse("something follows its last member", _COMPLETE)
        if self._gzip.unused_data or self._raw.read(1):
            self._refuse("something follows its end", _COMPLETE)

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise DpbenchError(f"{self._archive}: {what}", hint)
