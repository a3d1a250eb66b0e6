"""The README's figures are those of the committed records."""

import json
import subprocess

import pytest

from distilbert_kit.paths import ROOT

# factor and format of the report
UNITS = {"percent": (100, ".1f"), "ratio": (100, ".1f"), "times": (1, ".2f")}
UNITS |= dict.fromkeys(("millions", "points"), (1, ".1f"))


def committed(path):
    """A table as git has it, not as a later run on this machine may have left it."""
    command = ["git", "show", f"HEAD:results/study/tables/{path}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no git history here")
    return json.loads(found.stdout)


def table_rows(heading):
    """First cell -> other cells, of the tables under a heading of the README."""
    text = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_findings_are_the_committed_ones():
    rows = table_rows("What was found")
    claims = {claim["title"]: claim for claim in committed("claims.json")["claims"]}
    tested = {title for title, claim in claims.items() if claim["verdict"] != "not tested"}
    assert tested <= set(rows), "a claim that was tested is missing"
    for title in claims.keys() & rows.keys():
        measured, verdict = rows[title]
        claim = claims[title]
        assert verdict == claim["verdict"]
        if title in tested and claim["unit"] in UNITS:
            factor, digits = UNITS[claim["unit"]]
            assert measured.startswith(format(factor * claim["value"], digits))
    scores = {
        (row["label"], row["task"]): row["over_seeds"]
        for row in committed("scores.json")["rows"]
        if row["primary"]
    }
    for label in {label for label, _ in scores} & rows.keys():
        expected = f"{100 * scores[label, 'sst2']['mean']:.1f}"
        assert rows[label][0].startswith(expected)
