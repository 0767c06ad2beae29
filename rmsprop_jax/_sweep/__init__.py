"""Whole trainings over a grid of hyperparameters and seeds."""
