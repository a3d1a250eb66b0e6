"""The README's figures are those of the committed records, and its Python runs as it stands."""

import json
import subprocess

import pytest

from distilbert_kit.paths import ROOT
from distilbert_kit.study.evidence import speed
from distilbert_kit.study.records import Record

# factor and format of the report
UNITS = {"percent": (100, ".1f"), "ratio": (100, ".1f"), "times": (1, ".2f")}
UNITS |= dict.fromkeys(("millions", "points"), (1, ".1f"))


def committed(path):
    """A file of the study as git has it, not as a later run on this machine may have left it."""
    command = ["git", "show", f"HEAD:results/study/{path}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no git history here")
    return json.loads(found.stdout)


def tables(heading):
    """The tables under a heading of the README: for each, first cell -> {column: cell}."""
    text = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    found = []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            lines = [
                [cell.strip() for cell in row[2:-2].split(" | ")] for row in block.splitlines()
            ]
            columns = lines[0][1:]
            found.append({cells[0]: dict(zip(columns, cells[1:])) for cells in lines[2:]})
    return found


def test_claims_are_the_committed_ones():
    rows = tables("What was found")[0]
    claims = {claim["title"]: claim for claim in committed("tables/claims.json")["claims"]}
    tested = {title for title, claim in claims.items() if claim["verdict"] != "not tested"}
    assert tested <= set(rows), "a claim that was tested is missing"
    for title in claims.keys() & rows.keys():
        row, claim = rows[title], claims[title]
        assert row["verdict"] == claim["verdict"]
        if title in tested and claim["unit"] in UNITS and claim["kind"] != "speed":
            factor, digits = UNITS[claim["unit"]]
            assert row["measured"].startswith(format(factor * claim["value"], digits))


def test_scores_are_the_committed_ones():
    rows, seeds = tables("What was found")[1], committed("tables/study.json")["seeds"]
    means = {
        (row["label"], row["task"]): row["over_seeds"]
        for row in committed("tables/scores.json")["rows"]
        if row["primary"]
    }
    for label, row in rows.items():
        for task, cell in row.items():
            found = means.get((label, task))
            assert cell == (f"{100 * found['mean']:.1f}" if found else "–")
            assert not found or found["n"] == len(seeds), "the README says that all seeds are there"


def test_retention_is_the_committed_one():
    text = " ".join((ROOT / "README.md").read_text().split())
    scores = committed("tables/scores.json")["macro"]
    [student] = [row for row in scores if row["model"] == "distilled"]
    for kind in ("retention", "without_wnli", "above_guessing"):
        found = [100 * student[kind][part] for part in ("estimate", "low", "high")]
        assert "{:.1f} % [{:.1f}, {:.1f}]".format(*found) in text


def test_ablation_is_the_committed_one():
    rows = tables("What was found")[2]
    found = committed("tables/ablation.json")["rows"]
    assert set(rows) == {row["label"] for row in found}
    for row in found:
        change = [100 * row[part] for part in ("change", "low", "high")]
        paper = "–" if row["paper"] is None else f"{row['paper']:.2f}"
        assert list(rows[row["label"]].values()) == [
            "{:.1f} [{:.1f}, {:.1f}]".format(*change),
            paper,
        ]


def benchmark(stage):
    """The committed record of a benchmark."""
    return Record.model_validate(committed(f"benchmark/{stage}.json"))


def speeds():
    """Start of a row of the README -> ratio to the usual code at its best, and as it comes."""
    distillation = benchmark("distillation_speed")
    steps = {row["variant"]: row for row in speed.distillation_rows(distillation)}
    best = speed.best_precision(distillation)
    at_best, plain = steps[f"textbook_{best}"], steps["textbook_fp32"] if best == "bf16" else None
    training = speed.training_rows(benchmark("training_speed"))
    [as_it_comes] = [r for r in training if r["name"] == speed.TRAINERS["trainer_fp32"]]
    answering = speed.answering(benchmark("question_answering_speed"))
    return {
        "distillation step": (at_best["over_ours"], plain and plain["over_best"]),
        "on Wikipedia": (at_best["corpus_over_ours"], plain and plain["corpus_over_best"]),
        "fine-tuning": (training[1]["over_ours"], as_it_comes["over_ours"]),
        "answering SQuAD": (answering["over_ours"], None),
        "corpus preparation": (speed.preparing(benchmark("corpus_speed"))["over_ours"], None),
    }


def test_speeds_are_the_committed_ones():
    rows, found = tables("What was found")[3], speeds()
    assert len(rows) == len(found)
    for title, row in rows.items():
        [name] = [start for start in found if title.startswith(start)]
        best, plain = found[name]
        assert row["times as fast"] == "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**best), title
        assert row["and as it comes"] == (f"{plain['ratio']:.2f}" if plain else "–"), title


def test_faster_is_the_least_favourable_ratio_of_totals():
    rows = speed.speed_rows(benchmark("size_speed"))
    least = min(rows, key=lambda row: row["low"])
    text = tables("What was found")[0]["60 % faster"]["measured"]
    assert text.startswith(
        "{ratio:.2f} times, {low:.2f} to {high:.2f} over the passes".format(**least)
    )
    assert f"with {least['threads']} thread" in text
    assert ("our models" if least["maker"] == "ours" else "transformers'") in text


def test_accuracy_stands_beside_the_speed_of_fine_tuning():
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = speed.training_rows(benchmark("training_speed"))
    ours, trainer = (100 * row["dev_accuracy"]["mean"] for row in rows[:2])
    assert f"ends at {ours:.1f} % (ours) and {trainer:.1f} % (Trainer, grouped)" in text
    answers = speed.answering(benchmark("question_answering_speed"))["same_answers"]
    assert f"{100 * answers:.1f} % of the answers are equal" in text
