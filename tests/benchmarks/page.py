"""The page of benchmarks, docs/pages/benchmarks.md, and README's section "Benchmarks".

A benchmark's figures are between a pair of markers under its heading, with the command and the
machine that printed them. Other pages include them when the site is built. README's section is
written by `python -m tests.benchmarks.page`, and a test compares.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pages" / "benchmarks.md"
README = ROOT / "README.md"

INTRODUCTION = """\
# Benchmarks

`python -m tests.benchmarks --output docs/pages/benchmarks.md` writes this page, which has the
figures of speed and memory that are quoted elsewhere. With names (`python -m tests.benchmarks step
nan --output …`) it writes those sections anew and leaves the others, so each says which machine its
figures are from. Ratios compare sides that took turns in one process; brackets hold quartiles.
Nothing here is a test: what must hold is tested elsewhere, without a clock.
"""
SECTION = re.compile(
    r"^## (?P<title>[^\n]+)\n\n<!-- --8<-- \[start:(?P<name>\w+)\] -->\n(?P<body>.*?)"
    r"<!-- --8<-- \[end:(?P=name)\] -->\n",
    re.S | re.M,
)
RESULTS = re.compile(r"(<!-- results -->\n).*?(<!-- end -->\n)", re.S)


def section(lines: Iterable[str], command: str, machine: str) -> Iterator[str]:
    """A benchmark's lines as they stand on the page: its heading, then the command and the machine
    in front of the figures; further headings stand below the first."""
    heading, *first = "\n".join(lines).strip("\n").split("\n")
    yield f"{heading}\n\n`{command}`; {machine}\n"
    yield re.sub(r"^##(?= )", "###", "\n".join(first).strip("\n"), flags=re.M) + "\n"


def sections(page: str) -> dict[str, tuple[str, str]]:
    """For each benchmark its title and its figures."""
    return {found["name"]: (found["title"], found["body"]) for found in SECTION.finditer(page)}


def written(page: str, names: Iterable[str], new: dict[str, str]) -> str:
    """The page with these sections, each a heading and what stands under it, in this order."""
    known = sections(page)
    for name, text in new.items():
        heading, body = text.split("\n", 1)
        known[name] = heading.removeprefix("## "), body.strip("\n") + "\n"
    parts = [INTRODUCTION]
    for name in names:
        title, body = known.get(
            name, (name, f"Not run yet: `python -m tests.benchmarks {name}`.\n")
        )
        start, end = (f"<!-- --8<-- [{which}:{name}] -->\n" for which in ("start", "end"))
        parts.append(f"## {title}\n\n{start}{body}{end}")
    return "\n".join(parts)


def rows(body: str) -> dict[str, list[str]]:
    """The cells of each row of a section's tables, by its first."""
    lines = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("*", "") for cell in line] for line in lines]
    return {first: rest for first, *rest in cells}


def results(page: str) -> str:
    """README's benchmarks: each with its conditions, then the machine."""
    known = sections(page)
    sweep, step, nan = (rows(known[name][1]) for name in ("sweep", "step", "nan"))
    first = lambda cell: cell.split(" (")[0]
    longer = {side: f"{float(first(sweep[side][5])):.3g}" for side in ("loop", "vmap", "Optuna")}
    settings, trainings = re.match(r"(\d+) settings of (.*)", known["sweep"][0]).groups()
    leaf = re.search(r"a leaf of ([\d,]+) float32", known["step"][0])[1]
    measured = [row for name, row in step.items() if name not in ("settings", "---")]
    byte_ratios, times = ([float(first(row[i])) for row in measured] for i in (0, 2))
    names = {"optax": "Optax", "torch": "PyTorch", "keras": "Keras", "rmsprop_jax": "rmsprop_jax"}
    who = [names[column.split()[0]] for column in nan["gradients"]]
    when = [first(cell) for cell in nan["constant, centered"]]
    firsts = ", ".join(f"{x} {y}" for x, y in zip(who, when, strict=True))
    machine = known["sweep"][1].split("\n", 1)[0].split("; ", 1)[1]
    return f"""\
- **Sweep.** {settings} points of {trainings}, compile time included,
  take {first(sweep["ours"][3])} s. The same trials take {longer["loop"]}× as long one by
  one in a jitted function and {longer["vmap"]}× under one `jax.vmap`. An Optuna study that compiles
  every trial would take {longer["Optuna"]}× as long, estimated from {sweep["Optuna"][0]} trials.
  `python -m tests.benchmarks sweep`
- **Optimizer step.** One step of {leaf} float32 parameters, jitted with donated buffers,
  accesses {max(byte_ratios):.3f}× the bytes of `optax.rmsprop` and takes {min(times):.2f}× to
  {max(times):.2f}× its time.
  `python -m tests.benchmarks step`
- **NaN.** 1,000 parameters with constant gradients, `centered`, for 1,000 steps. The first NaN:
  {firsts}. `python -m tests.benchmarks nan`

Machine: {machine}.
"""


def quoted(text: str, page: str) -> str:
    """Return the text with the results of the page between its markers."""
    return RESULTS.sub(lambda found: found[1] + results(page) + found[2], text)


def quote() -> None:
    """Write README's section "Benchmarks" from the page."""
    page = PAGE.read_text("utf-8")
    README.write_text(quoted(README.read_text("utf-8"), page), "utf-8")


if __name__ == "__main__":
    quote()
