"""The figures on the page of reinforcement learning are those of the examples' tables."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "pages"
TEXT = " ".join((PAGES / "rl.md").read_text("utf-8").split())
ROW = re.compile(
    r"^(?P<name>.+?) {2,}(?P<rate>\S+) +(?P<iqm>\d+) \[(?P<low>\d+), (?P<high>\d+)\] +(?P<mean>\d+)"
    r" +(?P<lost>\d+)(?: +(?P<p>\S+) +\S+ \[(?P<least>\S+), (?P<most>\S+)\])?$",
    re.M,
)


def tables(example):
    """Return the rows by name: at the best rate, at the next rate, and at the shared rate."""
    printed = (PAGES / "pictures" / example / f"{example}.txt").read_text("utf-8")
    found = [{row["name"]: row for row in ROW.finditer(part)} for part in printed.split("\n\n")]
    return [rows for rows in found if rows]


def told_apart(rows):
    """Return the names with more and with fewer wins, where the interval excludes 0.5."""
    rows = [row for row in rows.values() if row["p"]]
    better = [row["name"] for row in rows if float(row["least"]) > 0.5]
    return better, [row["name"] for row in rows if float(row["most"]) < 0.5]


def test_the_rows_that_the_page_calls_better_and_worse():
    best, *_ = tables("a2c")
    better, worse = told_apart(best)
    assert better == ["A3C 2016", "IMPALA 2018"]
    assert worse == [
        *("Optax's default", "Adam", "Adam, ε = √1e-5", "s₀ = 1", "both (OpenAI Baselines)"),
        "ρ = 0.9",
    ]
    assert len(best) - 1 - len(better) - len(worse) == 9
    assert told_apart(tables("dqn")[0]) == (
        ["sum, ε = 1e-8", "mean, ε = 0.01 outside (MinAtar)"],
        [],
    )
    assert "about one of the 17 rows" in TEXT
    assert "For the other nine rows, 24 seeds cannot tell." in TEXT


@pytest.mark.parametrize(
    ("sentence", "example", "table", "name", "column"),
    [
        ("Stable-Baselines3 has {}.", "a2c", 0, "Stable-Baselines3", "iqm"),
        ("P is {} for A3C", "a2c", 0, "A3C 2016", "p"),
        ("{} for IMPALA", "a2c", 0, "IMPALA 2018", "p"),
        ("DQN's P is {}", "a2c", 0, "DQN 2015", "p"),
        ("Adam has an IQM of {}", "a2c", 0, "Adam", "iqm"),
        ("RMSProp has {} (*ε = 1e-8*", "a2c", 0, "ε = 1e-8", "iqm"),
        ("With this ε, Adam has {},", "a2c", 0, "Adam, ε = √1e-5", "iqm"),
        ("RMSProp has {} at the same learning rate", "a2c", 2, "ε in the root", "iqm"),
        ("of the IQM is {} to", "a2c", 0, "Adam, ε = √1e-5", "low"),
        ("instead of {} to", "a2c", 0, "Adam", "low"),
        ("P is {}, but the interval", "a2c", 0, "ε in the root", "p"),
        ("{} seeds are lost with ε inside the root", "a2c", 0, "ε in the root", "lost"),
        ("and {} with ε outside", "a2c", 1, "Stable-Baselines3", "lost"),
        ("there {} of the 24 other seeds are lost", "a2c", 0, "s₀ = 1", "lost"),
        ("can show (P is {})", "a2c", 2, "ε in the root", "p"),
        ("delays learning (P is {})", "a2c", 2, "s₀ = 1", "p"),
        ("with an IQM of {}.", "a2c", 0, "ρ = 0.9", "iqm"),
        ("IMPALA {}, and DQN", "a2c", 0, "IMPALA 2018, mean", "lost"),
        ("and DQN {}. With the sum", "a2c", 0, "DQN 2015, mean", "lost"),
        ("the same IQM ({} instead", "a2c", 0, "summed loss", "iqm"),
        ("and P is {}. If the", "a2c", 0, "summed loss", "p"),
        ("clip 0.5*), P is {}", "a2c", 0, "summed loss, clip 0.5", "p"),
        ("the IQM is {} instead of 118", "dqn", 2, "DQN 2015, mean", "iqm"),
        ("instead of {}. MinAtar's", "dqn", 2, "DQN 2015, sum", "iqm"),
        ("with an IQM of {}. Both", "dqn", 2, "mean, ε = 0.01 outside (MinAtar)", "iqm"),
        ("P and *wins* are {}.", "dqn", 0, "mean, ε = 0.01/32² (DQN Zoo)", "p"),
        ("(middle panel): P is {}", "dqn", 0, "DQN 2015, mean", "p"),
        ("best rate.** P is {}", "dqn", 0, "mean, ε = 0.01 outside (MinAtar)", "p"),
        ("is {} to 0.93", "dqn", 0, "mean, ε = 0.01 outside (MinAtar)", "least"),
        ("0.64 to {}.", "dqn", 0, "mean, ε = 0.01 outside (MinAtar)", "most"),
        ("that begins at {}", "dqn", 0, "sum, ε = 1e-8", "least"),
        ("P is {} at the best rate", "dqn", 0, "sum, ε = 1e-8", "p"),
        ("and {} at the small rate", "dqn", 2, "sum, ε = 1e-8", "p"),
    ],
)  # fmt: skip
def test_figures_of_the_page(sentence, example, table, name, column):
    assert sentence.format(tables(example)[table][name][column]) in TEXT
