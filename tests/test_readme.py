"""What the README says: its commands are accepted, its links and figures are right."""

import json
import math
import pathlib
import re
import shlex

import pytest

import prepare
import sample
import train
from config import load_settings

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"prepare.py": prepare, "train.py": train, "sample.py": sample}
COMMAND = r"(?:^|`)\s*(?:\$ )?(?:python3?|torchrun [^`\n]*?) ?((?:prepare|train|sample)\.py\b[^`\n]*)"
TYPED = {
    tuple(shlex.split(line, comments=True))
    for text in (README, *(module.__doc__ for module in SCRIPTS.values()))
    for line in re.findall(COMMAND, text, re.MULTILINE)
    if "--help" not in line
}


@pytest.mark.parametrize("words", sorted(TYPED), ids=" ".join)
def test_the_commands_in_docstrings_and_readme_are_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    rest = "input" if words[0] == "prepare.py" else None
    load_settings(SCRIPTS[words[0]].Settings, list(words[1:]), rest)


def test_all_of_them_are_found():
    assert {words[0] for words in TYPED} == SCRIPTS.keys()
    assert ("train.py", "config/elon.py", "--batch_size=32") in TYPED  # the card's line is the reference run
    assert load_settings(train.Settings, ["config/elon.py"]).batch_size == 32


def test_links_point_at_the_lines_that_they_name():
    links = re.findall(r"\[`(?:\w+\.)?(\w+)(?:\(\))?`\]\((\w+\.py)#L(\d+)\)", README)
    assert len(links) == len(re.findall(r"\.py#L\d+\)", README)) > 8
    for name, file, line in links:
        found = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"\s*(class|def) {name}\b", found), f"{file}:{line} is not {name}"
    for path in re.findall(r"""(?:\]\(|src=")(?!https?:|#)([^)#"]+)""", README):
        assert (ROOT / path).exists(), path


def numbers_in(value):
    """All numbers in what json.load gave, but those of the curves, which are too many to prove anything."""
    if isinstance(value, dict):
        value = [one for key, one in value.items() if "curve" not in key]
    if isinstance(value, list):
        return [number for one in value for number in numbers_in(one)]
    return [float(value)] if isinstance(value, int | float) and math.isfinite(value) else []


def test_the_figures_in_the_results_are_those_measured():
    measured = numbers_in(json.loads((ROOT / "out" / "reference" / "bench.json").read_text("utf-8")))
    sections = re.findall(r"^## [^\n]*\bresults?\b.*?(?=^## |\Z)", README, re.M | re.S | re.I)
    text = re.sub(r"\]\([^)]*\)", "]", "".join(sections))
    # the first column says what is measured, in which numbers are no results
    rows = re.findall(r"^\|[^|]*\|(.*)\|$", text, re.M)
    figures = [(number, row) for row in rows for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", row)]
    assert len(figures) > 8
    for figure, row in figures:
        shown, decimals = float(figure.replace(",", "")), len(figure.partition(".")[2])
        # as printed, or in other units: percent, minutes, thousands, millions of bytes
        units = (1, 100, 1 / 60, 1e-3, 1e-6)
        off = min(abs(x * unit - shown) for x in measured for unit in units)
        assert off <= 0.5001 * 10**-decimals, f"{figure} in {row}"
