"""Random keys that draw other numbers in a batch than alone: no trial of a sweep has them."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.run.machine import Machine
from tests.support import engine

IMPLEMENTATIONS = ["rbg", "unsafe_rbg"]
POINTS = rj.grid(x=[1, 2, 3, 4])


def of_seeds(impl):
    """`train` draws from its own key: `impl` is JAX's default around the call."""
    del impl
    return (lambda hp, key: {"loss": hp["x"] + jax.random.normal(key)}), {}


def in_args(impl):
    train = lambda hp, key, own: {"loss": jax.random.normal(jax.random.fold_in(own, hp["x"]))}
    return train, {"args": (jax.random.key(7, impl=impl),)}


def closed_over(impl):
    own = jax.random.key(7, impl=impl)
    return (lambda hp, key: {"loss": jax.random.normal(jax.random.fold_in(own, hp["x"]))}), {}


def of_a_hyperparameter(impl):
    return (lambda hp, key: {"loss": jax.random.normal(jax.random.key(hp["x"], impl=impl))}), {}


def from_a_raw_generator(impl):
    """Without a key of JAX's."""
    del impl
    words = lambda x: jnp.full(4, x, jnp.uint32)
    bits = lambda x: jax.lax.rng_bit_generator(words(x), (2,))[1]
    return (lambda hp, key: {"loss": (bits(hp["x"]) >> 8).astype(jnp.float32)[1]}), {}


def in_an_inner_loop(impl):
    def train(hp, key):
        def body(own, _):
            own, drawn = jax.random.split(own)
            return own, jax.lax.cond(hp["x"] > 1, jax.random.normal, jax.random.uniform, drawn)

        return {"loss": jax.lax.scan(body, jax.random.key(hp["x"], impl=impl), length=3)[1]}

    return train, {}


def in_the_state(impl):
    def init(hp, key):
        return hp["x"] * 1.0, jax.random.key(jax.random.bits(key), impl=impl)

    def step(hp, state, key):
        total, own = state
        own, drawn = jax.random.split(own)
        total += jax.random.normal(drawn)
        return (total, own), {"loss": total}

    return rj.Training(init, step), {"steps": 3, "keep_states": 0}


def in_evaluate(impl):
    own = jax.random.key(7, impl=impl)
    return rj.Training(
        lambda hp, key: hp["x"] * 1.0,
        lambda hp, state, key: (state, {}),
        lambda hp, state, key: {"loss": jax.random.normal(jax.random.fold_in(own, hp["x"]))},
    ), {"steps": 1, "keep_states": 0}


WHERE = [
    *(of_seeds, in_args, closed_over, of_a_hyperparameter, from_a_raw_generator),
    *(in_an_inner_loop, in_the_state, in_evaluate),
]
BOTH = [(make, impl) for make in WHERE for impl in IMPLEMENTATIONS]
REFUSED = r"batch_size must be 1.*got 2.*Pass batch_size=1.*threefry"


@pytest.mark.parametrize(("make", "impl"), BOTH)
def test_keys_that_draw_otherwise_in_a_batch_are_refused_there(make, impl, tmp_path):
    with jax.default_prng_impl(impl):
        train, options = make(impl)
        with pytest.raises(ValueError, match=REFUSED):
            rj.sweep(train, POINTS, batch_size=2, path=tmp_path / "new", progress=False, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [in_args, in_the_state])
def test_an_automatic_batch_is_1_with_one_warning(make):
    """As on an accelerator, whose memory is known."""
    train, options = make("rbg")
    alone = rj.sweep(train, POINTS, batch_size=1, progress=False, **options)
    large = Machine(device_memory=lambda devices: 1e12)
    with pytest.warns(UserWarning, match="batch_size is 1.*rbg") as warned:
        found = engine.sweep(train, POINTS, large, **options)
    assert len(warned) == 1
    assert warned[0].filename == engine.__file__  # the caller
    np.testing.assert_array_equal(found.objective, alone.objective)
    for name in alone.metrics:
        np.testing.assert_array_equal(found.metrics[name], alone.metrics[name])


def test_on_a_cpu_an_automatic_batch_is_1_and_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (in_args, in_the_state):
            train, options = make("rbg")
            rj.sweep(train, POINTS, progress=False, **options)


def shared(impl):
    """All trials draw the same numbers, which a batch does not change."""
    train = lambda hp, key, own: {"loss": hp["x"] + jax.random.normal(own, (2,))}
    return train, {"args": (jax.random.key(7, impl=impl),)}


def split_by_itself(impl):
    """JAX's documented numbers of a `vmap` over keys, the same for all trials."""
    own = jax.random.split(jax.random.key(7, impl=impl), 3)
    return (lambda hp, key: {"loss": hp["x"] + jax.vmap(jax.random.normal)(own)}), {}


@pytest.mark.parametrize(
    ("make", "impl"),
    [
        (shared, "rbg"),
        (in_an_inner_loop, "threefry2x32"),
        *(
            pytest.param(make, impl, marks=pytest.mark.slow)
            for make, impl in itertools.product((shared, split_by_itself), IMPLEMENTATIONS)
            if (make, impl) != (shared, "rbg")
        ),
        *(
            pytest.param(make, "threefry2x32", marks=pytest.mark.slow)
            for make in (in_args, closed_over)
        ),
    ],
)
def test_keys_whose_numbers_a_batch_does_not_change_may_be_in_one(make, impl):
    train, options = make(impl)
    found, alone = (
        rj.sweep(train, POINTS, batch_size=size, progress=False, **options) for size in (2, 1)
    )
    np.testing.assert_allclose(found.metrics["loss"], alone.metrics["loss"], rtol=1e-6)


@pytest.mark.parametrize("make", [of_a_hyperparameter, in_the_state])
def test_a_search_refuses_them_before_it_asks(make):
    train, options = make("rbg")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    search = lambda **how: rj.search.optimize(
        train, study, {"x": rj.choice([1, 2])}, n_trials=2, progress=False, **options, **how
    )
    with pytest.raises(ValueError, match=REFUSED):
        search(batch_size=2)
    assert not study.trials
    assert len(search()) == 2


def test_a_search_refuses_them_in_a_static_group_that_it_meets_on_the_way():
    """A space of too many static values is not traced whole before the first is asked."""
    width = rj.static(rj.integers(2, 10_000))
    impl = lambda hp: "threefry2x32" if hp["width"] == 2 else "rbg"
    train = lambda hp, key: {"loss": jax.random.normal(jax.random.key(hp["x"], impl=impl(hp)))}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    with pytest.raises(ValueError, match=REFUSED):
        rj.search.optimize(
            train, study, {"x": rj.integers(1, 9), "width": width}, n_trials=2, batch_size=2,
            progress=False,
        )  # fmt: skip
    assert len(study.trials) == 1
