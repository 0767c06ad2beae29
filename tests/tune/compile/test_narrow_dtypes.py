"""Numbers of a byte and less: in metrics, states, args, batches and files, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support.tables import crossed

BITS = {
    "float8_e3m4": 8,
    "float8_e4m3": 8,
    "float8_e4m3b11fnuz": 8,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float4_e2m1fn": 4,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "uint2": 2,
    "bfloat16": 16,
}
FEW = ["float8_e5m2", "float4_e2m1fn", "int4"]
POINTS = rj.grid(x=[0.0, 1.0])
of_all = pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in BITS]
)


def every(name):
    """Each number of the dtype."""
    return np.arange(2 ** BITS[name], dtype=f"u{max(1, BITS[name] // 8)}").view(name)


def bits(x):
    """Return the bits of the numbers. XLA does not keep the payload of a NaN."""
    nan = np.isnan(x.astype(np.float32))
    return np.where(nan, 0, x.view(f"u{x.itemsize}")).tobytes(), nan.tobytes()


def turned(numbers, x):
    """Beginning elsewhere, as `x` says."""
    return jnp.roll(numbers, x.astype(jnp.int32))


def alike(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)


def sweep(train, path=None, **options):
    return rj.sweep(train, POINTS, path=path, progress=False, **options)


@pytest.mark.slow
@of_all
@pytest.mark.parametrize("batch_size", [1, 2])
def test_metrics_come_back_from_devices_and_files(name, batch_size, tmp_path):
    numbers = every(name)

    def train(hp, key, numbers):
        series = turned(numbers, hp["x"])
        return {"loss": hp["x"], "series": series, "value": series[3]}

    options = {"args": (numbers,), "batch_size": batch_size}
    first = sweep(train, tmp_path / "a", **options)
    first.save(tmp_path / "b")
    for found in (
        first,
        sweep(train, tmp_path / "a", **options),
        rj.SweepResult.load(tmp_path / "a"),
        rj.SweepResult.load(tmp_path / "b"),
    ):
        alike(found.metrics["series"], np.stack([numbers, np.roll(numbers, 1)]))
        alike(found.metrics["value"], np.stack([numbers[3], np.roll(numbers, 1)[3]]))


def training(name):
    numbers = every(name)

    def init(hp, key, data):
        state = turned(data, hp["x"])
        return {"all": state, "one": state[0], "none": jnp.zeros((0, 3), state.dtype), "step": 0}

    def step(hp, state, key, batch, data):
        return (
            state | {"all": jnp.roll(state["all"], 1), "step": state["step"] + 1},
            {"loss": hp["x"], "first": state["all"][0], "given": batch["data"][1]},
        )

    def evaluate(hp, state, key, data):
        return {"last": state["all"][-1]}

    batches = lambda t: {"data": np.roll(numbers, t)}
    options = {"steps": 4, "evaluate_every": 2, "args": (jnp.asarray(numbers),)}
    return rj.Training(init, step, evaluate), options | {"batches": batches}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"),
    crossed(
        list(BITS),
        ["in memory", "on disk", "interrupted", "with a scheduler"],
        plain=[
            "float8_e5m2-in memory", "float4_e2m1fn-interrupted", "int4-on disk",
            "int4-with a scheduler",
        ],
    ),
)  # fmt: skip
def test_states_come_back_from_devices_and_files(name, kept, tmp_path):
    numbers, (train, options) = every(name), training(name)
    path = None if kept == "in memory" else tmp_path / "folder"
    options |= {"keep_states": "all", "checkpoint_seconds": 0}
    if kept == "with a scheduler":
        options["scheduler"] = rj.SuccessiveHalving(2, 2)

    def fail(report):
        if report[0].step == 4:
            raise ZeroDivisionError

    if kept == "interrupted":
        with pytest.raises(ZeroDivisionError):
            sweep(train, path, callback=fail, **options)
    found = sweep(train, path, **options)
    loaded = [rj.SweepResult.load(path)] if path else []
    if path is None:
        found.save(tmp_path / "saved")
        loaded = [rj.SweepResult.load(tmp_path / "saved")]
    for result in (found, *loaded):
        best = result.best()
        state = result.state(best)
        alike(state["all"], np.roll(numbers, 4))
        alike(state["one"], numbers[0])
        alike(state["none"], np.zeros((0, 3), name))
        first = [np.roll(numbers, t)[0] for t in range(4)]
        alike(result.metrics["first"][0], np.stack(first))
        alike(result.metrics["given"][0], np.stack([np.roll(numbers, t)[1] for t in (1, 2, 3, 4)]))
        alike(result.metrics["last"][0], np.stack([np.roll(numbers, t)[-1] for t in (2, 4)]))
    like = jax.eval_shape(lambda: state)
    alike(loaded[0].state(best, like=like)["all"], np.roll(numbers, 4))


def test_a_like_of_another_dtype_of_the_same_bytes_is_refused(tmp_path):
    train, options = training("int4")
    result = sweep(train, tmp_path, **options)
    for dtype in ("uint4", "uint8"):
        like = result.state(result.best())
        like = like | {"all": np.zeros(16, dtype)}
        with pytest.raises(ValueError, match=f"like must have.*int4.*{dtype}"):
            result.state(result.best(), like=like)


def test_a_float_without_nan_is_not_filled_with_it():
    """It is filled with 0, as whole numbers are, and may not differ in length."""
    lengths = rj.grid(n=rj.static([2, 3]))
    train = lambda hp, key: {"loss": 1.0, "series": jnp.ones(hp["n"], jnp.float4_e2m1fn)}
    with pytest.raises(ValueError, match="'series' must be the same in all static groups"):
        rj.sweep(train, lengths, progress=False)
    few, options = training("float4_e2m1fn")
    result = sweep(few, scheduler=rj.SuccessiveHalving(2, 2), **options)
    assert result.status.tolist() == ["complete", "pruned"]
    assert bits(result.metrics["first"][1, 2:]) == bits(np.zeros(2, "float4_e2m1fn"))


@pytest.mark.parametrize("name", ["int1", "uint1", "float6_e2m3fn", "float6_e3m2fn"])
def test_dtypes_that_jax_cannot_run_are_refused(name):
    """XLA turns int1 into bool, and ends the process over a constant of float6."""
    if not hasattr(jnp, name):
        pytest.skip("this JAX does not have it")
    cast = lambda hp: hp["x"].astype(name)
    held = rj.Training(lambda hp, key: cast(hp), lambda hp, state, key: (state, {"loss": 1.0}))
    fed = rj.Training(lambda hp, key: hp["x"], lambda hp, state, key, x: (state, {"loss": state}))
    zeros = np.zeros(2, name)
    for train, options in (
        (lambda hp, key: {"loss": hp["x"], "value": cast(hp)}, {}),
        (lambda hp, key, data: {"loss": hp["x"]}, {"args": (zeros,)}),
        (held, {"steps": 2}),
        (fed, {"steps": 2, "batches": lambda t: zeros}),
    ):
        with pytest.raises(ValueError, match=f"{name}.*Cast it"):
            sweep(train, **options)


def test_tables_take_them():
    pytest.importorskip("xarray")
    train = lambda hp, key: {"loss": hp["x"], "small": jnp.float8_e5m2(2.0), "whole": jnp.int4(-3)}
    result = sweep(train)
    for name, value, dtype in ("small", 2.0, np.float64), ("whole", -3, np.int8):
        assert result.to_xarray()[name].dtype == dtype
        assert result.to_xarray()[name].values.ravel().tolist() == [value, value]
        assert result.to_dataframe()[name].astype(float).tolist() == [value, value]
