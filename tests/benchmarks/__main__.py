"""Side-by-side ratios: `python -m tests.benchmarks [--quick] [--output FILE.md] [name ...]`.

`--output docs/pages/benchmarks.md` writes them on the page, each under its name, and what README
quotes of it. Some take sizes: `python -m tests.benchmarks halving --size hidden=64 --size seeds=1`.
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
    "structures",
    "nan",
    "segments",
    "halving",
    "population",
    "memory",
    "search",
    "tpu",
    "gpu",
)


def printed(lines):
    """The lines, printed as they come."""
    found = []
    for line in lines:
        print(line, flush=True)
        found.append(line)
    return found


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
    parser.add_argument(
        "--output", metavar="FILE", type=lambda x: Path(x).resolve(), help="write them on this page"
    )
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
    print(machine(), flush=True)
    for name, benchmark in zip(names, mains, strict=True):
        lines = printed(benchmark(options.quick, **dict(options.size)))
        if options.output is not None:  # each as it ends, so that the next may fail
            sizes = [f"--size {size}={number}" for size, number in options.size]
            words = ["python -m tests.benchmarks", name, *["--quick"] * options.quick, *sizes]
            text = "\n".join(page.section(lines, " ".join(words), machine()))
            old = options.output.read_text("utf-8") if options.output.exists() else ""
            options.output.write_text(page.written(old, NAMES, {name: text}), "utf-8")
    if options.output == page.PAGE:
        page.quote()


if __name__ == "__main__":
    main()
