"""RMSProp you can trust, port, and tune, in JAX."""

from rmsprop_jax import loggers, plots, presets, search
from rmsprop_jax._optimizer.cautious import cautious
from rmsprop_jax._optimizer.restore import Moments, moments, restore_state
from rmsprop_jax._optimizer.rmsprop import ScaleByRmsState, rmsprop, scale_by_rms
from rmsprop_jax._optimizer.stochastic_rounding import StochasticRoundingState, stochastic_rounding
from rmsprop_jax._tune.api import sweep
from rmsprop_jax._tune.executors import Executor
from rmsprop_jax._tune.interrupts import SweepInterrupted
from rmsprop_jax._tune.results.expected_best import ExpectedBest
from rmsprop_jax._tune.results.result import PointResult, SweepResult
from rmsprop_jax._tune.results.statistics import Comparison
from rmsprop_jax._tune.schedulers import (
    Decision,
    PopulationBasedTraining,
    Scheduler,
    SchedulerView,
    SuccessiveHalving,
)
from rmsprop_jax._tune.space.distributions import (
    Distribution,
    choice,
    integers,
    log_uniform,
    one_minus,
    uniform,
)
from rmsprop_jax._tune.space.points import Points, grid, static
from rmsprop_jax._tune.space.sampling import rmsprop_space, sample
from rmsprop_jax._tune.training.training import Training
from rmsprop_jax._tune.trials.progress import TrialReport

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Decision",
    "Distribution",
    "Executor",
    "ExpectedBest",
    "Moments",
    "PointResult",
    "Points",
    "PopulationBasedTraining",
    "ScaleByRmsState",
    "Scheduler",
    "SchedulerView",
    "StochasticRoundingState",
    "SuccessiveHalving",
    "SweepInterrupted",
    "SweepResult",
    "Training",
    "TrialReport",
    "__version__",
    "cautious",
    "choice",
    "grid",
    "integers",
    "log_uniform",
    "loggers",
    "moments",
    "one_minus",
    "plots",
    "presets",
    "restore_state",
    "rmsprop",
    "rmsprop_space",
    "sample",
    "scale_by_rms",
    "search",
    "static",
    "stochastic_rounding",
    "sweep",
    "uniform",
]
