"""The host memory that this process may still use: the machine's, or its container's."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Files(NamedTuple):
    """The names of a cgroup's files, and of lines in its `memory.stat`."""

    limits: tuple[str, ...]
    """The files with a limit in bytes."""
    usage: str
    """The file with the bytes in use."""
    cached: tuple[str, ...]
    """The lines with cached files, which the kernel drops before it refuses memory."""


FILES = {
    "cgroup2": _Files(
        ("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")
    ),
    "cgroup": _Files(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
}
"""The names by type of the mounted file system: cgroup version 2, and version 1."""


def free_bytes(root: Path = Path("/")) -> float | None:
    """Return the free memory in bytes; None if the system does not tell.

    It is the smallest of the machine's free memory and what each cgroup of this process has left.

    Args:
      root: the folder with the system's files.
    """
    free = [float(x) * 1024 for x in _numbers(root / "proc/meminfo", "MemAvailable:")]
    for files, folder in _cgroups(root):
        cached = sum(x for name in files.cached for x in _numbers(folder / "memory.stat", name))
        for usage in _numbers(folder / files.usage):
            limits = (limit for name in files.limits for limit in _numbers(folder / name))
            free += [max(0.0, float(limit - usage + cached)) for limit in limits]
    return min(free, default=None)


def _cgroups(root: Path) -> Iterator[tuple[_Files, Path]]:
    """Yield the folders of the cgroups that may limit this process, as far as they are mounted.

    These are the cgroup of this process and all that contain it. See
    https://man7.org/linux/man-pages/man7/cgroups.7.html and, for `mountinfo`,
    man5/proc_pid_mountinfo.5.html.
    """
    paths: dict[str, str] = {}  # by controller
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split()
        controller = "" if kind == "cgroup2" else "memory"
        is_for_memory = kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))
        if not is_for_memory or controller not in paths:
            continue
        base, point = mount.split()[3:5]
        top, path = root / point.lstrip("/"), PurePosixPath(paths[controller])
        yield FILES[kind], top
        # A container may see its own cgroup as the top, while `path` names it from outside.
        if path.is_relative_to(base) and ".." not in path.parts:
            folder = top
            for part in path.relative_to(base).parts:
                folder /= part
                yield FILES[kind], folder


def _numbers(file: Path, name: str = "") -> list[int]:
    """Return the number in a file, or in its lines with this name; empty for the text "max"."""
    words = [line.split() for line in _lines(file)]
    if name:
        words = [line[1:] for line in words if line[:1] == [name]]
    return [int(line[0]) for line in words if line and line[0].isdigit()]


def _lines(file: Path) -> list[str]:
    """Return the lines of a file; empty if it cannot be read."""
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
