"""A folder with one writer, whose files appear whole or not at all."""

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

import filelock

from rmsprop_jax._tune.storage.folder import LOCK


class LockedFolder:
    """A folder that only this object writes, until it is closed.

    Args:
      path: the folder. It is made if it does not exist.

    Raises:
      RuntimeError: if another sweep writes the folder.
      OSError: if the folder cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        problem = f"path must be a folder that can be written, but {path} cannot be written"
        with _explained(problem, "Pass another path."):
            self._made = _missing_folders(path)
            path.mkdir(parents=True, exist_ok=True)
            if not (path / LOCK).exists():
                self._made.append(path / LOCK)
            self._lock = filelock.FileLock(path / LOCK, timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise RuntimeError(
                    f"path must have one writer, got {path}, but another sweep is writing it, in "
                    "this process or another. Wait for that sweep, stop it, or pass another path. "
                    "If no sweep runs, a machine that broke down may have left its lock: delete "
                    f"{path / LOCK}."
                ) from None
            self._inode = _inode(path / LOCK)

    def close(self, is_new_kept: bool) -> None:
        """Release the folder.

        Args:
          is_new_kept: whether to keep the folders and the lock file that this object made.
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
        """Delete a file, if it exists."""
        (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Write a file, whole or not at all.

        The content goes to a temporary file, which is renamed once it is on disk. A kill leaves at
        most the temporary file, which the next call that writes deletes.

        Args:
          name: the name of the file.
          write: a function that writes the content into an open file.

        Raises:
          RuntimeError: if the path no longer leads to the folder that was locked.
          OSError: if the file cannot be written.
        """
        temporary = self.path / f".{name}.tmp"
        if _inode(self.path / LOCK) != self._inode:
            raise RuntimeError(
                f"path must stay in place while a sweep writes it, but {self.path} was moved, "
                "deleted, or replaced. This sweep writes nothing more, because the folder may be "
                "another sweep's. Move the folder back and make the same call again, which "
                "resumes, or pass another path."
            )
        with _explained(
            f"{self.path} must stay writable, but {name} cannot be written",
            "The files that were written before are unchanged. Remove the cause and make the same "
            "call again, which resumes.",
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
    """Return the folders of a path that do not exist, the outermost first."""
    missing = [path, *path.parents]
    return [folder for folder in missing if not folder.exists()][::-1]


def _inode(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of the file at a path; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _explained(problem: str, fix: str) -> Generator[None]:
    """Add a problem and its fix to an OSError that leaves this context."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise OSError(error.errno, f"{problem}: {cause}. {fix}") from error
