"""Side-by-side ratios: `python -m tests.benchmarks [--quick] [--output FILE.md] [name ...]`."""

import argparse
import importlib
import os
from pathlib import Path

import jax

from tests.benchmarks.runner import machine

NAMES = ("step", "sweep", "tiny", "structures", "nan")


def lines(names, quick):
    yield machine()
    for name in names:
        yield from importlib.import_module(f"tests.benchmarks.{name}").main(quick)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {NAMES}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the printed page here")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # before JAX is first used
    with (options.output or Path(os.devnull)).open("w", encoding="utf-8") as page:
        for line in lines(options.names or NAMES, options.quick):
            print(line, flush=True)
            print(line, file=page)


if __name__ == "__main__":
    main()
