"""What the README says: its commands are accepted, its links and figures are right."""

import json
import pathlib
import re
import shlex

import pytest
from bench import results_table

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


def test_the_results_are_those_measured():
    """The table is, to the letter, the one that bench.py makes; the text around it and the opening, which
    quote it, have no decimals of their own."""
    table = results_table(json.loads((ROOT / "out" / "reference" / "bench.json").read_text("utf-8")))
    opening, *sections = README.split("\n## ")
    results = next(section for section in sections if section.startswith("Results\n"))
    assert f"\n\n{table}\n\n" in results
    for figure in re.findall(r"(?<![\w.,])\d[\d,]*\.\d+", opening + results.replace(table, "")):
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d)", table), figure
