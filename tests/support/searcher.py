"""A worker on a study, until that says "enough".

`python -m tests.support.searcher URL LOG [PRUNER]`

Each line of its log is "report STEP" or "told NUMBER STATE", NUMBER that of the study.
"""

import os
import sys

import jax
import jax.numpy as jnp
import optuna

import rmsprop_jax as rj

STUDY = "searched"
STEPS, EVERY, SEEDS, SLOW = 40, 10, [4, 2], 5_000
SPACE = {
    "rate": rj.log_uniform(1e-3, 1.0),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "centered": rj.choice([False, True]),
}


def training():
    """A bowl under noise, each step held up by some sines."""

    def solver(hp):
        return rj.rmsprop(hp["rate"], decay=hp["decay"], centered=hp["centered"], eps=1e-3)

    def init(hp, key, slow):
        params = jax.random.normal(key, (50,))
        return params, solver(hp).init(params)

    def step(hp, state, key, slow):
        params, opt_state = state
        drift = jax.lax.fori_loop(0, slow, lambda _, x: jnp.sin(x), params)
        loss = jnp.sum((params - 0.01 * drift) ** 2)
        noise = jax.random.normal(key, params.shape)
        updates, opt_state = solver(hp).update(2 * params + noise, opt_state)
        return (params + updates, opt_state), {"loss": loss}

    return rj.Training(init, step)


def storage(url, **engine):
    """With a heartbeat each second, and trials of dead workers tried again."""
    return optuna.storages.RDBStorage(
        url,
        engine_kwargs=engine,
        heartbeat_interval=1,
        grace_period=6,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )


def search(study, slow, **options):
    given = {
        "n_trials": 1_000, "seeds": SEEDS, "steps": STEPS, "evaluate_every": EVERY,
        "args": (slow,), "progress": False, "devices": jax.local_devices()[:1],
    }  # fmt: skip
    return rj.search.optimize(training(), study, SPACE, **given | options)


if __name__ == "__main__":
    url, log_file, *pruner = sys.argv[1:]
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    say = lambda *what: os.write(log, f"{' '.join(map(str, what))}\n".encode())

    def told(study, trial):
        say("told", trial.number, trial.state.name)
        if study.user_attrs.get("enough"):
            study.stop()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=STUDY,
        storage=storage(url),
        sampler=optuna.samplers.RandomSampler(),
        pruner=getattr(optuna.pruners, pruner[0])() if pruner else None,
    )
    search(
        study, SLOW, study_callbacks=[told], callback=lambda report: say("report", report[0].step)
    )
