"""One file of a sweep's folder: whose it is, its checksum, how it is written and read.

A file is JSON or an uncompressed `.npz`. Its JSON, or the comment of the archive, names the format,
the sweep (a random id), the call that wrote it (its owner, a number that grows), and the file. It
ends with the SHA-256 of all bytes before. So a file that was changed, cut, renamed, or copied from
another folder is refused before anything in it is believed.
"""

import contextlib
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.space.values import stored_dtype

FORMAT = 3
END = b'"}'  # after the checksum
TAIL = 64 + len(END)
CHUNK = 2**20
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """Whose a file is."""

    sweep: str
    """The id of its sweep."""
    owner: int
    """The number of the call that wrote it: each that writes has the next."""


class FileError(Exception):
    """A file that is not what it should be; `damaged` says which, and what helps."""


class FormatError(ValueError):
    """A file of another version of the format."""


def write_json(file: IO[bytes], name: str, header: Header, content: Any) -> None:
    """Write a document under a header, and its checksum."""
    text = json.dumps(_head(name, header) | {"content": content, "sha256": ""})
    file.write(text.encode()[: -len(END)])
    _seal(file)


def write_arrays(
    file: IO[bytes], name: str, header: Header, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays that `numpy.load` reads under a header, and their checksum. `file` is open for
    reading, too."""
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = json.dumps(_head(name, header) | {"sha256": "0" * 64}).encode()
    file.seek(-TAIL, os.SEEK_END)
    file.truncate()
    _seal(file)


def _head(name: str, header: Header) -> dict[str, Any]:
    return {"format": FORMAT, "sweep": header.sweep, "owner": header.owner, "file": name}


def _seal(file: IO[bytes]) -> None:
    """Add the checksum of all that is there."""
    file.flush()
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(digest.encode() + END)


def _digest(file: IO[bytes], size: int) -> str:
    """SHA-256 of the first bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """A regular file: opening a pipe would wait for ever."""
    if not path.is_file():
        raise FileError("it is no regular file" if path.exists() else "it is not there")
    with open(path, "rb") as file:
        yield file


def _check_sum(file: IO[bytes]) -> None:
    size = os.fstat(file.fileno()).st_size - TAIL
    if size < 0 or _digest(file, size).encode() + END != file.read():
        raise FileError("its checksum does not fit its content")


def _header(found: Any, path: Path, sweep: str | None) -> Header:
    """What a file says of itself, checked."""
    _check_format(found, path)
    if found["file"] != path.name:
        raise FileError(f"it was written as {found['file']}")
    header = Header(found["sweep"], found["owner"])
    if not isinstance(header.sweep, str) or type(header.owner) is not int or header.owner < 1:
        raise FileError(f"it names its sweep {header.sweep!r} and its owner {header.owner!r}")
    if sweep not in (None, header.sweep):
        raise FileError("it belongs to another sweep")
    return header


def read_json(path: Path, sweep: str | None = None) -> tuple[Header, Any]:
    """A document and its header, of this sweep or, for None, of any.

    Raises:
      FileError: for one that was changed, or is another's.
    """
    with _open(path) as file:
        data = file.read()
        try:
            _check_sum(file)
        except FileError:
            older: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                older = json.loads(data)
            _check_format(older, path)  # formats before this had no checksum
            raise
    document = json.loads(data)
    return _header(document, path, sweep), document["content"]


def _check_format(found: Any, path: Path) -> None:
    written = found.get("format") if isinstance(found, dict) else None
    if type(written) is int and written != FORMAT:
        raise FormatError(
            f"{path} was written in format {written}, and this version reads format {FORMAT} only: "
            "give another path, and run the sweep again."
        )


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open file. What each takes is known before any is read.

    Attributes:
      name: of the file.
      header: whose the file is.
      specs: for each array its dtype and shape.
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
        """An array of int64 of rank 1, as a list."""
        self.check(name, np.int64, (None,))
        return self[name].tolist()

    def check(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
        """FileError where an array has another dtype, byte order, or shape; None is any length."""
        if name not in self.specs:
            raise FileError(f"it has no {name!r}")
        got = self.specs[name]
        fits = len(got[1]) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, got[1], strict=True)
        )
        if got[0] != stored_dtype(np.dtype(dtype)) or not fits:
            raise FileError(f"{name} is {got[0]}{list(got[1])}, wanted {np.dtype(dtype)}{shape}")


def _spec(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[np.dtype, tuple[int, ...]]:
    """An array's dtype and shape, by its header; FileError where its size is another."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in READ_HEADER:
            raise FileError(f"{info.filename} is of version {version} of NumPy's format")
        shape, _, dtype = READ_HEADER[version](stream)
        size = stream.tell() + math.prod(shape) * dtype.itemsize
    if info.compress_type != zipfile.ZIP_STORED or not size == info.file_size == info.compress_size:
        raise FileError(f"{info.filename} has another size than its header says")
    return dtype, shape


@contextlib.contextmanager
def open_arrays(path: Path, sweep: str | None = None) -> Iterator[Arrays]:
    """The arrays of a file of this sweep or, for None, of any.

    Raises:
      FileError: for a file that was changed, or is another's.
    """
    with _open(path) as file:
        yield Arrays(file, path, sweep)


@contextlib.contextmanager
def damaged(path: Path, remedy: str) -> Iterator[None]:
    """Whatever the reading of a file raises, as one ValueError that names the file and a remedy."""
    try:
        yield
    except (MemoryError, FormatError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, FileError) else repr(error)
        raise ValueError(f"{path} is damaged ({why}). Nothing was changed; {remedy}.") from error
