"""The one page of figures, docs/pages/benchmarks.md, and what README quotes of it.

A benchmark's figures stand between a pair of markers under its heading, with the command and the
machine that printed them. Other pages take them from there when the site is built; README's copies
are made anew by `python -m tests.benchmarks.page`, and a test compares.
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
QUOTE = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- end -->\n)", re.S)


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


def quoted(text: str, page: str) -> str:
    """A text whose quotes are as the page has them."""
    known = sections(page)
    return QUOTE.sub(lambda found: found[1] + known[found[2]][1] + found[3], text)


def quote() -> None:
    """Make README's quotes anew."""
    page = PAGE.read_text("utf-8")
    README.write_text(quoted(README.read_text("utf-8"), page), "utf-8")


if __name__ == "__main__":
    quote()
