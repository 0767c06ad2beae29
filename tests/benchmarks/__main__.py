"""Side-by-side ratios: `python -m tests.benchmarks [--quick] [step] [sweep] [tiny] [nan]`."""

import argparse
import importlib
import os
import platform

import jax
import numpy as np
import optax

NAMES = ("step", "sweep", "tiny", "nan")

parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
parser.add_argument("names", nargs="*", choices=[*NAMES, []], help=f"of {NAMES}; all by default")
parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
options = parser.parse_args()

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
print(
    f"{platform.machine()}, {os.cpu_count()} cores, "
    f"{jax.default_backend()} × {jax.device_count()}; "
    f"Python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}, "
    f"numpy {np.__version__}"
)
for name in options.names or NAMES:
    importlib.import_module(f"tests.benchmarks.{name}").main(options.quick)
