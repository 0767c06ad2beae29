"""Side-by-side ratios: `python -m tests.benchmarks [--quick] [--output FILE.md] [name ...]`.

Some take sizes: `python -m tests.benchmarks halving --size hidden=64 --size seeds=1`.
"""

import argparse
import importlib
import inspect
import os
from pathlib import Path

import jax

from tests.benchmarks.runner import machine

NAMES = (
    "step",
    "two_bytes",
    "sweep",
    "tiny",
    "structures",
    "nan",
    "segments",
    "halving",
    "population",
    "memory",
    "search",
    "tpu",
)


def lines(mains, options):
    yield machine()
    for main in mains:
        yield from main(options.quick, **dict(options.size))


def size(text):
    """`hidden=64` → ("hidden", 64)"""
    name, number = text.split("=")
    return name, int(number)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {NAMES}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the printed page here")
    parser.add_argument("--size", metavar="NAME=NUMBER", type=size, action="append", default=[])
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")

    names = options.names or NAMES
    mains = [importlib.import_module(f"tests.benchmarks.{name}").main for name in names]
    for benchmark, name in zip(mains, names, strict=True):
        if unknown := {n for n, _ in options.size} - set(inspect.signature(benchmark).parameters):
            parser.error(f"the benchmark {name} takes no size {', '.join(sorted(unknown))}")

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # before JAX is first used
    with (options.output or Path(os.devnull)).open("w", encoding="utf-8") as page:
        for line in lines(mains, options):
            print(line, flush=True)
            print(line, file=page)


if __name__ == "__main__":
    main()
