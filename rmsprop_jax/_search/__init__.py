"""A study of Optuna's, fed by compiled rounds of trials.

    space        our distributions as Optuna's, and back; a study's parameters as a point
    study        asks, reports and tells, patient with a database that is away; heartbeats
    loop         asks, runs, reports, prunes, tells, until all is done

Imported where `rmsprop_jax.search` is called, as Optuna is.
"""
