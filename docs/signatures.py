"""Signatures on the API pages: link names to their explanation, and write out private names.

This file is a hook of MkDocs, for the anchors of `api.md`, and an extension of Griffe, for
`presets`. The extension shows the default `_NONE` as 0, like `help`, and the private type names of
`presets` as Optax's types.
"""

import re

import griffe


def on_page_content(html, page, config, files):
    """Let references find the anchors of "Types in signatures"."""
    if page.file.src_uri == "api.md":
        for anchor in re.findall(r'<a id="([^"]+)"></a>', html):
            config.plugins["autorefs"].register_anchor(page, anchor)


class Spelt(griffe.Extension):
    def on_package(self, *, pkg, **kwargs):
        presets = pkg["presets"]
        for function in presets.functions.values():
            for parameter in function.parameters:
                parameter.annotation = spelt(parameter.annotation, presets)
                if str(parameter.default) == "_NONE":
                    parameter.default = "0"
            function.returns = spelt(function.returns, presets)


def spelt(annotation, module):
    """Return the value of a private name of this module, and any other annotation unchanged."""
    name = str(annotation)
    return module[name].value if name.startswith("_") else annotation
