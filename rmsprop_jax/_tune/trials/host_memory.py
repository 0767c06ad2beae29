"""How much of the host's memory this process may still take: the machine's, or its container's."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class _Files(NamedTuple):
    """How a version of cgroups names its files, and the lines of `memory.stat`."""

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]
    """Cached files: the kernel drops them before it refuses memory."""


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
"""By the type of the mounted file system: version 2, and version 1."""


def free_bytes() -> float | None:
    """Return how many bytes are free, on the machine and within the limit of each cgroup that this
    process is in; None where the system does not say."""
    free = [float(x) * 1024 for x in _numbers(ROOT / "proc/meminfo", "MemAvailable:")]
    for files, folder in _cgroups():
        cached = sum(x for name in files.cached for x in _numbers(folder / "memory.stat", name))
        for usage in _numbers(folder / files.usage):
            limits = (limit for name in files.limits for limit in _numbers(folder / name))
            free += [max(0.0, float(limit - usage + cached)) for limit in limits]
    return min(free, default=None)


def _cgroups() -> Iterator[tuple[_Files, Path]]:
    """The folders of the cgroups that may limit the memory of this process: its own, and those
    around it, as far as they are mounted here (https://man7.org/linux/man-pages/man7/cgroups.7.html
    and, for `mountinfo`, man5/proc_pid_mountinfo.5.html)."""
    own: dict[str, str] = {}
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(ROOT / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split()
        controller = "" if kind == "cgroup2" else "memory"
        is_for_memory = kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))
        if not is_for_memory or controller not in own:
            continue
        base, point = mount.split()[3:5]
        top, path = ROOT / point.lstrip("/"), PurePosixPath(own[controller])
        yield FILES[kind], top
        # A container may see its cgroup as the top, under a path that names it from outside.
        if path.is_relative_to(base) and ".." not in path.parts:
            folder = top
            for part in path.relative_to(base).parts:
                folder /= part
                yield FILES[kind], folder


def _numbers(file: Path, name: str = "") -> list[int]:
    """The number in a file, or that of the line with this name; none where it says "max"."""
    words = [line.split() for line in _lines(file)]
    if name:
        words = [line[1:] for line in words if line[:1] == [name]]
    return [int(line[0]) for line in words if line and line[0].isdigit()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
