"""Write the tables of docs/pages/recipes.md anew from docs/recipes.toml: `python docs/recipes.py`.

The page has a pair of markers for each kind of recipe; what is between them is made here, the rest
is written by hand. A test compares the page with the table.
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
    """The row's optimiser, to paste; a string among its arguments is code."""
    code = lambda value: value if isinstance(value, str) else repr(value)
    given = ", ".join(f"{name}={code(value)}" for name, value in row["arguments"].items())
    room = "rj" if row["preset"] == "rmsprop" else "rj.presets"
    parts = [f"{room}.{row['preset']}({given})"]
    if "clip" in row:
        parts.insert(0, f"optax.clip_by_global_norm({row['clip']})")
    if "l2" in row:  # of the loss, so that its gradient is clipped with the rest
        parts.insert(0, f"optax.add_decayed_weights({row['l2']})")
    return f"optax.chain({', '.join(parts)})" if len(parts) > 1 else parts[0]


def link(row, text, place):
    """To "file:line" of the row's repository, at the commit that was read."""
    file, line = place.rsplit(":", 1)
    url = f"https://github.com/{row['repository']}/blob/{row['commit']}/{file}#L{line}"
    return f"[{text}]({url})"


def line(row):
    """The row of the page."""
    name = link(row, row["name"], f"{row['file']}:{row['line']}")
    others = [link(row, i, place) for i, place in enumerate(row.get("also", []), 2)]
    over = " × ".join(f"{number} {what}" for what, number in row["batch"].items())
    by = f"`{row['by']}`"
    if "there" in row:
        given = ", ".join(f"{argument}={value}" for argument, value in row["there"].items())
        by = f"`{row['by']}({given})`"
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
    head = "| who | there | here | schedule | loss | note |\n|---|---|---|---|---|---|\n"
    return head + "".join(f"{line(row)}\n" for row in rows() if row["kind"] == kind)


def filled(page):
    """The page's text with its tables made anew."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
