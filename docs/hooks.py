"""What MkDocs does besides: formulas as MathML, each page in its language, a name for its search.

A ```math block becomes MathML, which browsers draw with their own fonts; GitHub draws the same
blocks by itself. No script and no font is fetched. A page with `lang:` says so in `<html>`.
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
