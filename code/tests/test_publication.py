"""From invented records to figures, notebooks, report and poster."""

import json
import re
import subprocess

import matplotlib.pyplot as plt
import pytest
from invented import RATES, make_recipe, write_evidence

import build_report
from benchmarks import shared
from distilbert_kit.paths import CODE, NOTEBOOKS
from distilbert_kit.study import figures, publication


def test_figures_are_equal_byte_by_byte(tiny):
    contents = []
    for _ in range(2):
        figures.use_style()
        figure, axes = plt.subplots()
        axes.plot([1, 2, 4], label="a line")
        axes.legend()
        figures.save_figure(figure, tiny, "line")
        plt.close(figure)
        contents.append((tiny.folder / "figures" / "line.svg").read_bytes())
    assert contents[0] == contents[1]


def test_table_refuses_nan(tiny):
    with pytest.raises(ValueError, match="JSON"):
        figures.save_table(tiny, "bad", {"score": float("nan")})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_sources_are_stripped(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


@pytest.mark.parametrize("document", ["report", "poster"])
def test_nobody_types_a_measured_number(document):
    text = (CODE.parent / document / f"{document}.typ").read_text()
    typed = re.findall(r"(\d[\d.]*)\s*(?:\s%|points|seconds|GFLOP|MB|ms|×)", text)
    assert set(typed) <= {"95", "97", "40", "60"}  # the level, and the question itself


def test_report_without_tables_says_what_to_do(results, tmp_path):
    with pytest.raises(build_report.UserError, match="make notebooks"):
        build_report.typeset("report", make_recipe(tmp_path))


def test_from_records_to_report_and_poster(results, tmp_path, monkeypatch):
    """With every benchmark, of a machine without bf16 instructions."""
    monkeypatch.setitem(RATES, "bf16_gflops", None)
    monkeypatch.setitem(RATES, "bf16", shared.NO_BF16)
    recipe = make_recipe(
        tmp_path,
        training_speed={"examples": 64, "rounds": 3},
        distillation_speed={"rounds": 2, "sequences": 24},
        corpus_speed={"compared_mb": 1, "memory_mb": [1, 2]},
        question_answering_speed={"questions": 40, "rounds": 2},
    )
    write_evidence(recipe)
    commands = publication.publication_commands(recipe)
    commands.pop("report")  # would write the PDFs of the project
    subprocess.run(commands.pop("claims")[1], check=True, capture_output=True)
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for _, command in commands.values()
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
    table = json.loads((recipe.folder / "tables" / "study.json").read_text())
    assert table["scale"] == recipe.scale and not table["evidence"]["missing"]
    step = json.loads((recipe.folder / "tables" / "distillation.json").read_text())["step"]
    assert step["bf16"] == shared.NO_BF16
    assert [row["variant"] for row in step["rows"]] == ["textbook_fp32", "ours_fp32"]
    for document in ("report", "poster"):
        pdf = build_report.typeset(document, recipe)
        assert pdf.startswith(b"%PDF") and pdf == build_report.typeset(document, recipe)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1, "the poster is one page"
