"""Run benchmarks: `python -m tests.benchmarks [--quick] [--output FILE.md] [name ...]`.

`--output docs/pages/benchmarks.md` writes the results on the page, each under its name, and in the
README. Some benchmarks take sizes: `python -m tests.benchmarks halving --size hidden=64`.
"""

import argparse
import importlib
import inspect
import os
from pathlib import Path

import jax

from tests.benchmarks import page
from tests.benchmarks.runner import machine

NAMES = (
    "step",
    "trees",
    "two_bytes",
    "sweep",
    "long_sweep",
    "peers",
    "tiny",
    "static_groups",
    "nan",
    "segments",
    "executors",
    "lost_process",
    "halving",
    "population",
    "memory",
    "search",
    "tpu",
    "gpu",
)


def printed(lines):
    """Print each line as it arrives, and return all lines."""
    found = []
    for line in lines:
        print(line, flush=True)
        found.append(line)
    return found


def size(text):
    """Parse `hidden=64` to ("hidden", 64)."""
    name, number = text.split("=")
    return name, int(number)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {NAMES}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="use small sizes, only to check that it runs"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=lambda x: Path(x).resolve(), help="write the results here"
    )
    parser.add_argument("--size", metavar="NAME=NUMBER", type=size, action="append", default=[])
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(
            f"names must be benchmarks, got {', '.join(sorted(unknown))}. "
            f"Choose from {', '.join(NAMES)}."
        )

    names = options.names or NAMES
    mains = [importlib.import_module(f"tests.benchmarks.{name}").main for name in names]
    for benchmark, name in zip(mains, names, strict=True):
        if unknown := {n for n, _ in options.size} - set(inspect.signature(benchmark).parameters):
            parser.error(
                f"--size must be an argument of the benchmark {name}, "
                f"got {', '.join(sorted(unknown))}"
            )

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # before the first use of JAX
    print(machine(), flush=True)
    for name, benchmark in zip(names, mains, strict=True):
        lines = printed(benchmark(options.quick, **dict(options.size)))
        if options.output is not None:  # write each at once, because the next may fail
            sizes = [f"--size {size}={number}" for size, number in options.size]
            words = ["python -m tests.benchmarks", name, *["--quick"] * options.quick, *sizes]
            text = "\n".join(page.section(lines, " ".join(words), machine()))
            old = options.output.read_text("utf-8") if options.output.exists() else ""
            options.output.write_text(page.written(old, NAMES, {name: text}), "utf-8")
    if options.output == page.PAGE:
        page.quote()


if __name__ == "__main__":
    main()
