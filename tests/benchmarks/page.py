"""The one page of figures, docs/pages/benchmarks.md, and README's three results, made from it.

A benchmark's figures stand between a pair of markers under its heading, with the command and the
machine that printed them. Other pages take them from there when the site is built; README's results
are made anew by `python -m tests.benchmarks.page`, and a test compares.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import rmsprop_jax as rj

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
    """The three results that README begins with."""
    known = sections(page)
    nan, sweep = (rows(known[name][1]) for name in ("nan", "sweep"))
    settings = re.match(r"\d+ settings of an LSTM", known["sweep"][0])[0]
    first = lambda cell: cell.split(" (")[0]
    names = {"optax": "Optax", "torch": "PyTorch", "keras": "Keras", "rmsprop_jax": "here"}
    who = [names[column.split()[0]] for column in nan["gradients"]]
    when = [first(cell) for cell in nan["constant, centered"]]
    firsts = ", ".join(f"{x} {y}" for x, y in zip(who, when, strict=True))
    times = {side: f"{float(first(sweep[side][5])):.3g}" for side in ("loop", "vmap", "Optuna")}
    return f"""\
- **It does not break.** The first NaN under a constant gradient, `centered`:
  {firsts}. `python -m tests.benchmarks nan`
- **It tunes in one call.** {settings}, compiling included, in {first(sweep["ours"][3])} s;
  one jitted loop takes {times["loop"]} times as long, one `vmap` {times["vmap"]}, an Optuna study
  that compiles each {times["Optuna"]}. `python -m tests.benchmarks sweep`
- **It ports.** {len(rj.presets.__all__)} presets, held for 1,000 steps to PyTorch, Keras,
  TensorFlow and others, and to papers' equations, within 1e-12:
  `python -m pytest tests/test_presets.py`
"""


def quoted(text: str, page: str) -> str:
    """A text whose results are those of the page."""
    return RESULTS.sub(lambda found: found[1] + results(page) + found[2], text)


def quote() -> None:
    """Make README's results anew."""
    page = PAGE.read_text("utf-8")
    README.write_text(quoted(README.read_text("utf-8"), page), "utf-8")


if __name__ == "__main__":
    quote()
