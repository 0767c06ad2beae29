"""Tuning: whole trainings over points and seeds, with one compile for each static group.

`api.py` has the call; the folders tell the story, from `space` (what is tried) to `results`.
"""
