"""Write the printed output of the pages' code blocks: `python docs/printed.py [PAGE ...]`.

The blocks of a page run in order, in one namespace. The output of a block is below the block, in a
```text block with the title "prints". A test runs the pages and compares the output.
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
    """Yield, for each block of a page, its match and its printed output."""
    names = {}
    for block in BLOCK.finditer(text):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block["code"], name, "exec"), names)
        printed = "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
        yield block, printed + "\n" * bool(printed)


def shown(text, name):
    """Return the page with the printed output of its blocks."""
    printed = iter([output for _, output in run(text, name)])

    def with_output(block):
        output = next(printed)
        return block[1] + (f'\n```text title="prints"\n{output}```\n' if output else "")

    return BLOCK.sub(with_output, text)


def main(names):
    for page in [PAGES / name for name in names] or sorted(PAGES.glob("*.md")):
        text = page.read_text("utf-8")
        page.write_text(shown(text, page.name), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
