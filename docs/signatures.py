"""Signatures on the API pages: their names lead to what explains them, private ones are spelt out.

A hook of MkDocs, for the anchors of `api.md`, and an extension of Griffe, for `presets`: 0 for the
default `_NONE`, as `help` has it, and Optax's types for their short names there.
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
    """What a private name of this module was set to; anything else as it is."""
    name = str(annotation)
    return module[name].value if name.startswith("_") else annotation
