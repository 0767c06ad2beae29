"""The machine that a call runs on: its clock, its free memory, and how much shares a wave."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax

from rmsprop_jax._tune.trials.host_memory import free_bytes

Device: TypeAlias = Any  # jax.Device, for which jaxlib brings no types

MEMORY_SHARE = 0.9  # of a device's free memory: allocators lose some of it in gaps


def device_memory(devices: Sequence[Device]) -> float | None:
    """Return the usable bytes of the fullest device of this process; None if unknown.

    Args:
      devices: devices of any process. Those of other processes are ignored.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine's clock and memory, and the limits of a wave. Tests pass another machine."""

    clock: Callable[[], float] = time.perf_counter
    """Returns seconds since some fixed time."""
    device_memory: Callable[[Sequence[Device]], float | None] = device_memory
    """Returns the usable bytes of the fullest of some devices; None if unknown."""
    host_memory: Callable[[], float | None] = free_bytes
    """Returns the free bytes of the host; None if unknown."""
    wave_seconds: float = 0.5
    """Short trials share a wave until it takes this long, because the bar moves once per wave."""
    buffer_bytes: int = 16 * 2**20
    """The bytes on each device for the outputs of trials that share a call."""
