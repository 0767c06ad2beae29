"""Tuning: whole trainings over points and seeds, with one compile for each static group.

`api.py` has the call. The folders follow a sweep, from its points (`space`) to its `results`.

Where to find the answers to common questions:

- How are trials separated into static groups? `space/static_groups.py`.
- What is the order at a rung? `SynchronousRunner._decide` and `_after` in `run/synchronous.py`.
- When is a checkpoint written and deleted? `CheckpointManager` in `trials/checkpoints.py`.
- What does a resume do after a kill between two files? `storage/writer.py`, and `Session.open` in
  `session.py`.
- How is the batch size chosen? `compile/group_compiler.py`.
- Where is a trial's key made? `key_of` in `space/seeds.py`.
- What must be equal for a folder to resume? `extended` in `storage/manifest.py`. The hashes are
  made in `training/fingerprint.py`.
- Which threads exist? The next paragraph.
- How does a search differ from a sweep? `search/runner.py`.
- Which trials can be best? `FinalStates` in `trials/final_states.py` while the sweep runs, and
  `SweepResult.ranked` in `results/result.py` afterwards.

The calling thread runs everything except the following. A sweep compiles its programs in a pool of
threads (`compile_ahead` in `compile/group_compiler.py`); a search compiles on the calling thread.
With several processes, `run/cluster.py` meets the other processes in a daemon thread. If a study's
storage has heartbeats, `search/study_client.py` records them in a daemon thread. tqdm starts a
daemon thread, its monitor, with the first progress bar, even one that is not shown.
"""
