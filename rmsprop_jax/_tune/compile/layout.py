"""The assignment of a wave's trials to slots on the devices."""

from typing import Any, NamedTuple

import jax
import numpy as np

MOST_BATCHES = 4096  # of one call on each submesh


def wave_bytes(submeshes: int, trial_bytes: int, buffer_bytes: int) -> int:
    """Return the most bytes that the states of a wave take, empty slots included."""
    return submeshes * max(trial_bytes, buffer_bytes)


class DeviceLayout(NamedTuple):
    """The slots of a wave: on each submesh `capacity` batches of `batch_size` trials.

    A *submesh* is the devices of one trial: a single device, unless the sweep has a `mesh`. The
    first batch goes to the submesh with the number `first` (by default 0), the second to the next
    submesh, and so on in turn.
    """

    submeshes: int
    """The number of submeshes."""
    capacity: int
    """The number of batches that fit one call on each submesh."""
    batch_size: int
    """The number of trials that share a `vmap`."""
    is_lockstep: bool = False
    """Whether all submeshes run equally many batches, each with equally many steps.

    On a CPU, a `collective-permute` waits for all devices, not only for those that exchange data.
    Submeshes of several devices therefore run in lockstep, and the free slots of a short wave run
    copies of its first trial."""

    @classmethod
    def fit(
        cls,
        submeshes: int,
        batch_size: int,
        trial_bytes: int,
        trials: int,
        buffer_bytes: int,
        is_lockstep: bool = False,
    ) -> "DeviceLayout":
        """Return the layout for as many of these trials as one call can hold.

        Args:
          submeshes: the number of submeshes.
          batch_size: the number of trials that share a `vmap`.
          trial_bytes: the bytes of one trial in a call, on each of its devices.
          trials: the number of trials in all.
          buffer_bytes: the bytes on each device for the outputs of one call.
          is_lockstep: whether all submeshes run equally many batches.
        """
        most = -(-trials // (batch_size * submeshes))
        fit = buffer_bytes // max(trial_bytes * batch_size, 1)
        return cls(submeshes, max(1, min(most, MOST_BATCHES, fit)), batch_size, is_lockstep)

    def slots(self, batches: int) -> int:
        """Return the number of trials that fit this many batches on each submesh."""
        return self.submeshes * batches * self.batch_size

    def slots_of(self, count: int, first: int = 0) -> np.ndarray:
        """Return the slot of each of `count` trials, among all slots of all submeshes."""
        batch, place = np.divmod(np.arange(count), self.batch_size)
        return self._rows(batch, first) * self.batch_size + place

    def _rows(self, batch: np.ndarray, first: int) -> np.ndarray:
        """Return the row of each batch, among the rows of all submeshes."""
        row, submesh = np.divmod(batch, self.submeshes)
        return (submesh + first) % self.submeshes * self.capacity + row

    def batches_of(self, count: int, first: int = 0) -> np.ndarray:
        """Return the number of batches that each submesh runs for `count` trials, int32."""
        batches = -(-count // self.batch_size)
        each = (batches + self.submeshes - 1 - np.arange(self.submeshes)) // self.submeshes
        each = np.full_like(each, each.max()) if self.is_lockstep else np.roll(each, first)
        return each.astype(np.int32)

    def lay(self, rows: Any, count: int, first: int = 0) -> Any:
        """Return arrays with a leading axis over trials, arranged by slots.

        The last trial is repeated in the free slots of its batch, and the first trial in the free
        batches.
        """
        slot, fill = self.slots_of(count, first), np.zeros(self.slots(self.capacity), np.intp)
        fill[slot] = np.arange(count)
        if count:
            fill[slot[-1] + 1 : slot[-1] + 1 + -count % self.batch_size] = count - 1
        fill = fill.reshape(-1, self.batch_size)
        return jax.tree.map(lambda x: np.asarray(x)[fill], rows)

    def lay_batches(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """Return an array with one value for each batch, arranged by rows.

        In lockstep, all values must be equal, and free batches have the same value.
        """
        if self.is_lockstep:
            assert (values == values[0]).all()
            return np.full(self.submeshes * self.capacity, values[0])
        laid = np.zeros(self.submeshes * self.capacity, values.dtype)
        laid[self._rows(np.arange(len(values)), first)] = values
        return laid
