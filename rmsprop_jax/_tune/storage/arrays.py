"""One file of a sweep's folder: its header, its checksum, how it is written and read.

A file is JSON or an uncompressed `.npz`. Its header is in the JSON, or in the comment of the
archive. The header names the format, the sweep (a random id), the call that wrote the file (its
owner, a number that grows), and the file itself. The file ends with the SHA-256 of all bytes
before. A file that was changed, cut, renamed, or copied from another folder is therefore refused
before its content is used.
"""

import contextlib
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from rmsprop_jax._tune.space.values import Json, stored_dtype

FORMAT = 3
END = b'"}'  # the bytes after the checksum
TAIL = 64 + len(END)
CHUNK = 2**20
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """The sweep and the call that a file belongs to."""

    sweep: str
    """The id of the sweep."""
    owner: int
    """The number of the call that wrote the file. Each call that writes gets the next number."""


class FileError(Exception):
    """The error for a file with wrong content. `damaged` adds the file's name and the fix."""


class FormatError(ValueError):
    """The error for a file of another version of the format."""


def write_json(file: IO[bytes], name: str, header: Header, content: Json) -> None:
    """Write a document with its header and checksum.

    Args:
      file: an empty file, open for reading and writing.
      name: the file's name, which becomes part of the header.
      header: the sweep and the call that the file belongs to.
      content: the document.
    """
    text = json.dumps(_head(name, header) | {"content": content, "sha256": ""})
    file.write(text.encode()[: -len(END)])
    _seal(file)


def write_arrays(
    file: IO[bytes], name: str, header: Header, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays, which `numpy.load` can read, with their header and checksum.

    Args:
      file: an empty file, open for reading and writing.
      name: the file's name, which becomes part of the header.
      header: the sweep and the call that the file belongs to.
      arrays: the arrays by name.
    """
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = json.dumps(_head(name, header) | {"sha256": "0" * 64}).encode()
    file.seek(-TAIL, os.SEEK_END)
    file.truncate()
    _seal(file)


def _head(name: str, header: Header) -> dict[str, Json]:
    """Return a header as JSON."""
    return {"format": FORMAT, "sweep": header.sweep, "owner": header.owner, "file": name}


def _seal(file: IO[bytes]) -> None:
    """Append the checksum of all bytes in the file."""
    file.flush()
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(digest.encode() + END)


def _digest(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of the first `size` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _open(path: Path) -> Generator[IO[bytes]]:
    """Open a regular file. Opening a pipe would wait forever."""
    if not path.is_file():
        raise FileError("it is not a regular file" if path.exists() else "it does not exist")
    with open(path, "rb") as file:
        yield file


def _check_sum(file: IO[bytes]) -> None:
    """Raise FileError unless the checksum at the end of a file matches its content."""
    size = os.fstat(file.fileno()).st_size - TAIL
    if size < 0 or _digest(file, size).encode() + END != file.read():
        raise FileError("its checksum does not match its content")


def _header(head: Json, path: Path, sweep: str | None) -> Header:
    """Return the header of a file; FileError if it names another file or sweep."""
    _check_format(head, path)
    if head["file"] != path.name:
        raise FileError(f"it was written as {head['file']}")
    sweep_id, owner = head["sweep"], head["owner"]
    if not isinstance(sweep_id, str) or type(owner) is not int or owner < 1:
        raise FileError(f"it names its sweep {sweep_id!r} and its owner {owner!r}")
    if sweep not in (None, sweep_id):
        raise FileError("it belongs to another sweep")
    return Header(sweep_id, owner)


def read_json(path: Path, sweep: str | None = None) -> tuple[Header, Json]:
    """Return the header and the document of a file.

    Args:
      path: the file.
      sweep: the id of the sweep that the file must belong to; None for any sweep.

    Raises:
      FileError: for a file that was changed, or that belongs to another sweep.
      FormatError: for a file of another version of the format.
    """
    with _open(path) as file:
        data = file.read()
        try:
            _check_sum(file)
        except FileError:
            head: Json = None
            with contextlib.suppress(ValueError, RecursionError):
                head = json.loads(data)
            _check_format(head, path)  # older formats had no checksum
            raise
    document = json.loads(data)
    return _header(document, path, sweep), document["content"]


def _check_format(head: Json, path: Path) -> None:
    """Raise FormatError for a file of another version of the format."""
    version = head.get("format") if isinstance(head, dict) else None
    if type(version) is int and version != FORMAT:
        raise FormatError(
            f"{path} must be in format {FORMAT}, the only one that this version reads, but was "
            f"written in format {version}. Pass another path=..., and run the sweep again."
        )


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open file, read when they are used.

    Args:
      file: the file, open for reading.
      path: its path.
      sweep: the id of the sweep that the file must belong to; None for any sweep.

    Attributes:
      name: the name of the file.
      header: the sweep and the call that the file belongs to.
      specs: the dtype and shape of each array, known before the array is read.

    Raises:
      FileError: for a file that was changed, or that belongs to another sweep.
    """

    def __init__(self, file: IO[bytes], path: Path, sweep: str | None):
        self.name = path.name
        _check_sum(file)
        with zipfile.ZipFile(file) as archive:
            self.header = _header(json.loads(archive.comment), path, sweep)
            self.specs = {info.filename[:-4]: _spec(archive, info) for info in archive.infolist()}
        file.seek(0)
        self._stored = np.load(file, allow_pickle=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def column(self, name: str) -> list[int]:
        """Return an int64 array of rank 1 as a list."""
        self.check(name, np.int64, (None,))
        return self[name].tolist()

    def check(self, name: str, dtype: DTypeLike, shape: tuple[int | None, ...]) -> None:
        """Raise FileError unless an array has this dtype, byte order, and shape.

        Args:
          name: the name of the array.
          dtype: the dtype that it had before it was stored.
          shape: its shape, with None for an axis of any length.
        """
        if name not in self.specs:
            raise FileError(f"it has no array {name!r}")
        stored, lengths = self.specs[name]
        fits = len(lengths) == len(shape) and all(
            length in (None, stored_length)
            for length, stored_length in zip(shape, lengths, strict=True)
        )
        if stored != stored_dtype(np.dtype(dtype)) or not fits:
            raise FileError(
                f"its array {name!r} must be {np.dtype(dtype)}{shape}, got {stored}{list(lengths)}"
            )


def _spec(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the dtype and shape in an array's header; FileError if its size does not match."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in READ_HEADER:
            raise FileError(f"{info.filename} has version {version} of NumPy's format")
        shape, _, dtype = READ_HEADER[version](stream)
        size = stream.tell() + math.prod(shape) * dtype.itemsize
    if info.compress_type != zipfile.ZIP_STORED or not size == info.file_size == info.compress_size:
        raise FileError(f"the size of {info.filename} does not match its header")
    return dtype, shape


@contextlib.contextmanager
def open_arrays(path: Path, sweep: str | None = None) -> Generator[Arrays]:
    """Open the arrays of a file.

    Args:
      path: the file.
      sweep: the id of the sweep that the file must belong to; None for any sweep.

    Raises:
      FileError: for a file that was changed, or that belongs to another sweep.
    """
    with _open(path) as file:
        yield Arrays(file, path, sweep)


@contextlib.contextmanager
def damaged(path: Path, remedy: str) -> Generator[None]:
    """Turn each exception of reading a file into a ValueError with the file and a fix.

    Args:
      path: the file.
      remedy: the fix, in full sentences.

    Raises:
      ValueError: for all exceptions but MemoryError and FormatError.
    """
    try:
        yield
    except (MemoryError, FormatError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, FileError) else repr(error)
        raise ValueError(
            f"{path} must be as the sweep wrote it, but is damaged ({why}). Nothing was changed. "
            f"{remedy}"
        ) from error
