"""Figures in a text."""

import re


def says(text, *figures):
    """Whether each of these stands in the text as a number of its own."""
    return all(re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", text) for figure in figures)


def without_zero(figure):
    """As the pages write it: .5 for 0.5."""
    return figure.removeprefix("0") if figure.startswith("0.") else figure
