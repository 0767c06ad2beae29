"""Callbacks that show a sweep in TensorBoard, MLflow, or Weights & Biases: one run per trial."""

from rmsprop_jax.loggers.mlflow import MLflow
from rmsprop_jax.loggers.tensorboard import TensorBoard
from rmsprop_jax.loggers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "WandB"]


def __dir__() -> list[str]:
    return __all__
