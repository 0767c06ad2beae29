"""The benchmark `sweep` with longer trials, where a compile for each point costs less."""

from tests.benchmarks.sweep import compare


def main(quick: bool):
    trials, steps, hidden = (2, 3, 8) if quick else (8, 300, 64)
    sizes = {"trials": trials, "steps": steps, "hidden": hidden}
    yield from compare(sizes, {"rebuilt": 2, "vmap": trials, "ours": trials}, 1 if quick else 3)
