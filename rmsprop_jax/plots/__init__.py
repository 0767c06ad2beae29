"""Pictures of sweeps and of optimizers. Each function returns its Axes and imports matplotlib."""

from rmsprop_jax.plots.optimizers import contour, effective_step
from rmsprop_jax.plots.style import COLORS
from rmsprop_jax.plots.sweeps import curves, expected_best, heatmap, lineage, sensitivity

__all__ = [
    "COLORS", "contour", "curves", "effective_step", "expected_best", "heatmap", "lineage",
    "sensitivity",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
