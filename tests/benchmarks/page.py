"""The page of benchmarks, docs/pages/benchmarks.md, and README's section "Benchmarks".

The figures of a benchmark are between two markers under its heading, with the command and the
machine that printed them. Other pages include them when the site is built.
`python -m tests.benchmarks.page` writes README's section, and a test compares both.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pages" / "benchmarks.md"
README = ROOT / "README.md"

INTRODUCTION = """\
# Benchmarks

This page records the speed and the memory of rmsprop_jax, called *ours* in the tables. Other pages
quote these figures. Each section starts with its command and its machine.

- **Terms.** A *point* is one configuration of hyperparameters. A *trial* is a point with one seed.
  Trials that share their static hyperparameters form a *static group*, and share compiled programs.
  A *segment* is the steps between two evaluations, run as one compiled call.
- **Ratios.** The sides of a comparison take turns in one process. The column *÷ Optax* has our
  figure divided by Optax's. The column *run ÷ ours* has the figure of the row divided by ours. A
  figure such as 1.04 (0.97–1.05) is a median with its quartiles.
- **Goals.** Some tables have a goal for a figure. Below such a table, a sentence names the missed
  goals.
- **No tests.** These figures are not tests. The test suite checks the guarantees without a clock.

`python -m tests.benchmarks --output docs/pages/benchmarks.md` runs all benchmarks and writes this
page. Add names, such as `step nan`, to replace the sections of these benchmarks only.
"""
SECTION = re.compile(
    r"^## (?P<title>[^\n]+?)(?: \{ #\w+ \})?\n\n"
    r"<!-- --8<-- \[start:(?P<name>\w+)\] -->\n(?P<body>.*?)"
    r"<!-- --8<-- \[end:(?P=name)\] -->\n",
    re.S | re.M,
)
RESULTS = re.compile(r"(<!-- results -->\n).*?(<!-- end -->\n)", re.S)


def section(lines: Iterable[str], command: str, machine: str) -> Iterator[str]:
    """Return the lines of a benchmark as the page shows them.

    The heading comes first, then command and machine, then the figures. All further headings are
    one level lower.
    """
    heading, *first = "\n".join(lines).strip("\n").split("\n")
    yield f"{heading}\n\n`{command}`; {machine}\n"
    yield re.sub(r"^##(?= )", "###", "\n".join(first).strip("\n"), flags=re.M) + "\n"


def sections(page: str) -> dict[str, tuple[str, str]]:
    """Return the title and the figures of each benchmark."""
    return {found["name"]: (found["title"], found["body"]) for found in SECTION.finditer(page)}


def written(page: str, names: Iterable[str], new: dict[str, str]) -> str:
    """Return the page with the new sections, all sections in the order of `names`."""
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
        parts.append(f"## {title} {{ #{name} }}\n\n{start}{body}{end}")
    return "\n".join(parts)


def rows(body: str) -> dict[str, list[str]]:
    """Return the cells of each table row of a section, by the first cell of the row."""
    lines = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("*", "") for cell in line] for line in lines]
    return {first: rest for first, *rest in cells}


def results(page: str) -> str:
    """Return README's benchmarks, each with its conditions, and the machine."""
    known = sections(page)
    sweep, step, nan = (rows(known[name][1]) for name in ("sweep", "step", "nan"))
    first = lambda cell: cell.split(" (")[0]
    longer = {side: f"{float(first(sweep[side][5])):.3g}" for side in ("loop", "vmap", "Optuna")}
    points, trainings = re.match(r"(\d+) points of (.*)", known["sweep"][0]).groups()
    leaf = re.search(r"an array of ([\d,]+) float32", known["step"][0])[1]
    measured = [row for name, row in step.items() if name not in ("variant", "---")]
    byte_ratios, times = ([float(first(row[i])) for row in measured] for i in (0, 2))
    names = {"optax": "Optax", "torch": "PyTorch", "keras": "Keras", "rmsprop_jax": "rmsprop_jax"}
    who = [names[column.split()[0]] for column in nan["gradients"]]
    when = [first(cell) for cell in nan["constant, centered"]]
    firsts = ", ".join(f"{x} {y}" for x, y in zip(who, when, strict=True))
    machine = known["sweep"][1].split("\n", 1)[0].split("; ", 1)[1]
    return f"""\
- **Sweep.** {points} points of {trainings}, compile time included,
  take {first(sweep["ours"][3])} s in one sweep. One by one in a jitted function, the same trials
  take {longer["loop"]}× as long. Under one `jax.vmap`, the same trials take
  {longer["vmap"]}× as long. An Optuna study that compiles every trial would take
  {longer["Optuna"]}× as long, estimated from {sweep["Optuna"][0]} trials.
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
