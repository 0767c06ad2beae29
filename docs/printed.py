"""Put what the code of the pages prints below it: `python docs/printed.py [PAGE ...]`.

Blocks run in order, each with what those before it have made. What one prints stands below it in a
```text block entitled "prints"; a test runs the pages and compares.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

PAGES = Path(__file__).parent / "pages"
BLOCK = re.compile(
    r"(^```python\n(?P<code>.*?)^```\n)"
    r'(\n```text title="prints"\n(?P<said>.*?)^```\n)?', re.S | re.M
)  # fmt: skip


def run(text, name):
    """For each block of a page its match and what it printed."""
    names = {}
    for block in BLOCK.finditer(text):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block["code"], name, "exec"), names)
        printed = "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
        yield block, printed + "\n" * bool(printed)


def shown(text, name):
    """The page with what its blocks print."""
    printed = iter([said for _, said in run(text, name)])

    def anew(block):
        said = next(printed)
        return block[1] + (f'\n```text title="prints"\n{said}```\n' if said else "")

    return BLOCK.sub(anew, text)


def main(names):
    for page in [PAGES / name for name in names] or sorted(PAGES.glob("*.md")):
        text = page.read_text("utf-8")
        page.write_text(shown(text, page.name), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
