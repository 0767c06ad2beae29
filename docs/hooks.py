"""Hooks of MkDocs: formulas as MathML, the language of each page, and a label for the search.

A ```math block becomes MathML, which browsers draw with their own fonts. GitHub draws the same
blocks. The site fetches no script and no font. A page with `lang:` sets the language in `<html>`.
"""

from latex2mathml.converter import convert


def on_config(config):
    fence = {"name": "math", "class": "formula", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def formula(source, language, css_class, options, md, **kwargs):
    return f'<div class="{css_class}">{convert(source.strip(), display="block")}</div>'


def on_post_page(output, page, config):
    if lang := page.meta.get("lang"):
        output = output.replace('<html lang="en"', f'<html lang="{lang}"', 1)
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">', 1)
