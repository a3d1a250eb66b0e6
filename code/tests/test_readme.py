"""The README's figures are those of the committed records, and its Python runs as it stands."""

import json
import re
import subprocess

import pytest

from distilbert_kit import DistilBERTForQuestionAnswering, create_model_config, get_tokenizer
from distilbert_kit.paths import ROOT

# factor and format of the report
UNITS = {"percent": (100, ".1f"), "ratio": (100, ".1f"), "times": (1, ".2f")}
UNITS |= dict.fromkeys(("millions", "points"), (1, ".1f"))

# row of the README -> benchmark, where its ratios are, and which of them stand there
BF16 = ("textbook_fp32/ours_bf16", "textbook_bf16/ours_bf16")
SPEEDS = {
    "distillation step": ("distillation_speed", ("textbook_over_ours",), BF16),
    "on Wikipedia": ("distillation_speed", ("corpus", "textbook_over_ours"), BF16),
    "fine-tuning": ("training_speed", ("speedup_of_ours",), ("trainer_fp32", "trainer_bf16")),
    "answering SQuAD": ("question_answering_speed", (), ("textbook_over_ours",)),
    "corpus preparation": ("corpus_speed", (), ("slow_over_ours",)),
}


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
        if title in tested and claim["unit"] in UNITS:
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


def test_speeds_are_the_committed_ones():
    rows = tables("What was found")[3]
    assert len(rows) == len(SPEEDS)
    for title, row in rows.items():
        [name] = [start for start in SPEEDS if title.startswith(start)]
        stage, path, names = SPEEDS[name]
        found = committed(f"benchmark/{stage}.json")["measured"]["extra"]
        for key in path:
            found = found[key]
        ratios = [found[name].get("ratio", found[name].get("estimate")) for name in names]
        assert row["times as fast"] == " / ".join(f"{ratio:.2f}" for ratio in ratios)


def test_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Every block, one after the other, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    squad = create_model_config("MiniLM-L6", num_layers=1)
    DistilBERTForQuestionAnswering(squad).save_pretrained("my-squad-model", get_tokenizer())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) > 1
    metrics, label, *_ = capsys.readouterr().out.splitlines()
    assert eval(metrics)["accuracy"] == 1.0 and label == "positive"
    answer = names["rows"][0]["answers"][0]
    assert "The tower is in Paris."[answer["start"] :].startswith(answer["text"])
