"""Population-based training compared with random search, with the same number of steps.

Both start from the same members. Random search never changes the hyperparameters of a member. Each
run has its own points, keys, and choices, and the objective selects the best member. Two problems:

- an LSTM, selected by the validation loss, with its test loss;
- a quadratic loss with noisy gradients. Here, a falling learning rate beats every constant one,
  because steps of RMSProp do not shrink with the gradient: a small rate is less noisy but slower.
  The third side is random search with learning rates that fall to 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import header, interleaved, row

SPACE = {
    "learning_rate": rj.log_uniform(1e-4, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
}
CURVATURE = np.geomspace(1.0, 1e-2, 20, dtype=np.float32)
NOISE = 0.1


class Problem(NamedTuple):
    title: str
    trainings: dict[str, rj.Training]
    """The trainings of random search, by the name of the side. The population uses the first."""
    args: tuple[jax.Array, ...]
    evaluations: tuple[str, ...]
    """Names of evaluations. The first is the objective."""
    members: int
    steps: int
    runs: int


def an_lstm(quick: bool) -> Problem:
    hidden, members, steps, runs = (8, 4, 30, 1) if quick else (16, 16, 300, 3)
    training, args = lstm(hidden, held_out=500 if quick else None)
    title = f"an LSTM of {hidden} units, nats per character"
    evaluations = ("validation", "test")
    return Problem(title, {"random search": training}, args, evaluations, members, steps, runs)


def a_bowl(quick: bool) -> Problem:
    members, steps, runs = (4, 30, 1) if quick else (16, 2000, 5)
    trainings = {"random search": bowl(None), "random search, falling rate": bowl(steps)}
    title = "a quadratic loss with noisy gradients"
    return Problem(title, trainings, (), ("loss without noise",), members, steps, runs)


def bowl(falls_for: int | None) -> rj.Training:
    """Return a quadratic loss of 20 parameters, whose curvatures differ by up to 100 times.

    Args:
      falls_for: the steps in which the learning rate falls to 0, or `None` for a constant rate.
    """

    def solver(hp):
        rate = hp["learning_rate"]
        if falls_for is not None:
            rate = optax.linear_schedule(rate, 0.0, falls_for)
        return rj.rmsprop(rate, decay=hp["decay"], centered=hp["centered"], eps=1e-6)

    def loss(params):
        return 0.5 * jnp.sum(CURVATURE * params**2)

    def init(hp, key):
        params = jax.random.normal(key, CURVATURE.shape)
        return params, solver(hp).init(params)

    def step(hp, state, key):
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params)
        gradient += NOISE * jax.random.normal(key, params.shape)
        updates, opt_state = solver(hp).update(gradient, opt_state)
        return (params + updates, opt_state), {"loss": value}

    def evaluate(hp, state, key):
        return {"loss without noise": loss(state[0])}

    return rj.Training(init, step, evaluate)


def best(problem: Problem, training: rj.Training, is_population: bool, run: int) -> list[float]:
    """Return the final evaluations of the member with the best objective."""
    objective, *_ = problem.evaluations
    points = rj.sample(SPACE, problem.members, seed=run) * rj.grid(centered=[False])
    result = rj.sweep(
        training,
        points,
        seeds=[run],
        steps=problem.steps,
        evaluate_every=max(1, problem.steps // 10),
        scheduler=rj.PopulationBasedTraining(SPACE, seed=run) if is_population else None,
        objective=objective,
        args=problem.args,
        progress=False,
    )
    member = result.ranked()[0]  # with one seed a point is a trial
    return [float(result.metrics[name][member, -1]) for name in problem.evaluations]


def compared(problem: Problem):
    """Yield a row per side: the results of its best members, compared with the population's."""
    first, *_ = problem.trainings.values()
    sides = {"population": functools.partial(best, problem, first, True)}
    for name, training in problem.trainings.items():
        sides[name] = functools.partial(best, problem, training, False)
    found = {name: np.array(each) for name, each in interleaved(sides, problem.runs).items()}
    yield (
        f"\n## Population-based training: {problem.title}\n\n{problem.members} members × "
        f"{problem.steps} steps. The figures are the mean (min–max) of {problem.runs} runs, and "
        "the number of runs in which the population has the lower loss.\n"
    )
    columns = ((name, "population is lower") for name in problem.evaluations)
    yield header("side", *(column for pair in columns for column in pair))
    for name, values in found.items():
        cells = []
        for ours, theirs in zip(found["population"].T, values.T, strict=True):
            cells.append(f"{theirs.mean():.4g} ({theirs.min():.4g}–{theirs.max():.4g})")
            cells.append("" if name == "population" else f"{(ours < theirs).sum()} of {len(ours)}")
        yield row(name, *cells)


def main(quick: bool):
    yield from compared(an_lstm(quick))
    yield from compared(a_bowl(quick))
