"""A folder with one writer, whose files appear whole or not at all."""

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

import filelock

from rmsprop_jax._tune.storage.folder import LOCK


class LockedFolder:
    """A folder that this object alone writes, until it is closed.

    Args:
      path: made where it is not there.

    Raises:
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        with _explained(f"the sweep's folder {path} cannot be written"):
            self._made = _missing_folders(path)
            path.mkdir(parents=True, exist_ok=True)
            if not (path / LOCK).exists():
                self._made.append(path / LOCK)
            self._lock = filelock.FileLock(path / LOCK, timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise RuntimeError(
                    f"another sweep, of this process or another, is writing {path}: wait for it, "
                    "stop it, or give another path. If none does, a machine that broke down may "
                    f"have left its lock behind: delete {path / LOCK}."
                ) from None
            self._inode = _inode(path / LOCK)

    def close(self, is_new_kept: bool) -> None:
        """Let others write.

        Args:
          is_new_kept: whether what this object made stays: the folders and the lock.
        """
        made = [] if is_new_kept else self._made
        with contextlib.suppress(OSError):
            if self.path / LOCK in made:
                (self.path / LOCK).unlink()
        self._lock.release()
        with contextlib.suppress(OSError):
            for folder in reversed(made):
                if folder != self.path / LOCK:
                    folder.rmdir()

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Write a file, whole or not at all.

        Args:
          name: of the file.
          write: writes the content into an open file.

        Raises:
          RuntimeError: where the folder is no longer the one that was locked.
          OSError: where it cannot be written.
        """
        temporary = self.path / f".{name}.tmp"
        if _inode(self.path / LOCK) != self._inode:
            raise RuntimeError(
                f"{self.path} was moved, deleted, or made anew while this sweep wrote it, and may "
                "be another sweep's by now: nothing more is written there. Move it back and make "
                "the same call again to go on, or give another path."
            )
        with _explained(
            f"{name} cannot be written to {self.path}; what was there is untouched, and the same "
            "call goes on from it once this is mended"
        ):
            try:
                with open(temporary, "w+b") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path / name)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            if os.name == "posix":  # the new name is on disk, too
                folder = os.open(self.path, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def _missing_folders(path: Path) -> list[Path]:
    """Return the folders of a path that are not there, from the outermost."""
    missing = [path, *path.parents]
    return [folder for folder in missing if not folder.exists()][::-1]


def _inode(path: Path) -> tuple[int, int] | None:
    """Return which file is at a path; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _explained(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
