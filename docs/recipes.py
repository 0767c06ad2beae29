"""Write the tables of docs/pages/recipes.md from docs/recipes.toml: `python docs/recipes.py`.

The page has a pair of markers for each kind of recipe. This program writes the text between the
markers; the rest is written by hand. A test compares the page with the table.
"""

import re
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
TABLE = DOCS / "recipes.toml"
PAGE = DOCS / "pages" / "recipes.md"
MARKED = re.compile(r"(<!-- recipes: (\w+) -->\n).*?(<!-- end -->\n)", re.S)


def rows():
    return tomllib.loads(TABLE.read_text("utf-8"))["recipe"]


def call(row):
    """Return the code of the row's optimizer. A string among its arguments is code."""
    code = lambda value: value if isinstance(value, str) else repr(value)
    arguments = ", ".join(f"{name}={code(value)}" for name, value in row["arguments"].items())
    module = "rj" if row["preset"] == "rmsprop" else "rj.presets"
    parts = [f"{module}.{row['preset']}({arguments})"]
    if "clip" in row:
        parts.insert(0, f"optax.clip_by_global_norm({row['clip']})")
    if "l2" in row:  # a term of the loss, so clipping applies to its gradient, too
        parts.insert(0, f"optax.add_decayed_weights({row['l2']})")
    return f"optax.chain({', '.join(parts)})" if len(parts) > 1 else parts[0]


def link(row, text, place):
    """Return a link to "file:line" of the row's repository, at the row's commit."""
    file, line = place.rsplit(":", 1)
    url = f"https://github.com/{row['repository']}/blob/{row['commit']}/{file}#L{line}"
    return f"[{text}]({url})"


def line(row):
    """Return the row of the page."""
    name = link(row, row["name"], f"{row['file']}:{row['line']}")
    others = [link(row, i, place) for i, place in enumerate(row.get("also", []), 2)]
    over = " × ".join(f"{number} {what}" for what, number in row["batch"].items())
    by = f"`{row['by']}`"
    if "there" in row:
        arguments = ", ".join(f"{name}={value}" for name, value in row["there"].items())
        by = f"`{row['by']}({arguments})`"
    remarks = [f"{argument} = {rule}" for argument, rule in row.get("computed", {}).items()]
    cells = [
        " ".join([name, *others]),
        by,
        f"`{call(row)}`",
        row.get("schedule", "constant"),
        f"{link(row, row['loss'], row['loss_at'])} over {over}",
        ". ".join([*(f"`{remark}`" for remark in remarks), row.get("note", "")]).strip(". "),
    ]
    return f"| {' | '.join(cells)} |"


def table(kind):
    head = (
        "| project | original optimizer | with this package | schedule | loss | note |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"{line(row)}\n" for row in rows() if row["kind"] == kind)


def filled(page):
    """Return the page's text with its tables written again."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
