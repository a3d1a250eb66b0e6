"""From invented records to figures, notebooks, report and poster."""

import json
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
from invented import RATES, make_recipe, write_csv_record, write_evidence
from nbclient import NotebookClient
from published import check_shown, publish

import build_report
from benchmarks import shared
from distilbert_kit.errors import UserError
from distilbert_kit.paths import CODE, NOTEBOOKS, ROOT
from distilbert_kit.study import figures
from distilbert_kit.study.cells import cells_to_run
from distilbert_kit.study.publication import publication_commands, publication_key
from distilbert_kit.study.recipes import load_recipe


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


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_sources_are_stripped(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_asks_calls_and_answers(path):
    first, *_, last = json.loads(path.read_text())["cells"]
    assert re.search(r"^\*\*.+\?\*\*$", "".join(first["source"]), re.MULTILINE)
    assert last["source"][-1].startswith("print(answers.")
    cells = json.loads(path.read_text())["cells"]
    assert all(len(cell["source"]) <= 12 for cell in cells if cell["cell_type"] == "code")


def check_executed(notebook):
    """No warning, no error, no empty table, and a sentence at the end."""
    outputs = [found for cell in notebook["cells"] for found in cell.get("outputs", ())]
    for found in outputs:
        assert found["output_type"] != "error" and found.get("name") != "stderr", found
    texts = ("".join(found.get("data", {}).get("text/plain", "")) for found in outputs)
    check_shown("\n".join(texts), "".join(outputs[-1]["text"]))


def test_a_notebook_runs_alike_in_jupyter_and_by_papermill(results):
    """By papermill as the graph runs it."""
    recipe = load_recipe("quick")  # as the notebook names it
    write_evidence(recipe)
    assert not cells_to_run(recipe)
    folder, name = recipe.folder / "notebooks", "04_ablation"
    graph = [sys.executable, "-m", "snakemake", "--snakefile", CODE / "Snakefile", "--nolock"]
    stamp = recipe.folder / ".stamps" / "publish" / name
    graph += ["--cores", "1", "--config", "recipe=quick", "--", stamp]
    subprocess.run(graph, check=True, capture_output=True, cwd=ROOT)
    (recipe.folder / "tables" / "claims.json").unlink()  # the other run makes none
    check_executed(json.loads((folder / f"{name}.ipynb").read_text()))
    made = [*recipe.folder.glob("tables/*.json"), *recipe.folder.glob("figures/*.svg")]
    written = {path: path.read_bytes() for path in made}
    assert {path.name for path in made} == {"ablation.json", "ablation.svg"}
    for path in made:
        path.unlink()
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    check_executed(notebook)
    assert {path: path.read_bytes() for path in written} == written


@pytest.mark.parametrize("missing", [{"speed": None}, {"tasks": []}])
def test_what_no_notebook_can_tell_is_refused_before_a_cell_runs(tmp_path, missing):
    with pytest.raises(UserError, match=f"recipe tiny has no {next(iter(missing))}"):
        publication_commands(make_recipe(tmp_path, **missing))


def test_report_without_tables_says_what_to_do(results, tmp_path):
    with pytest.raises(build_report.UserError, match="make notebooks"):
        build_report.typeset("report", make_recipe(tmp_path))


def test_from_records_to_report_and_poster(results, tmp_path, monkeypatch):
    """With every benchmark, of a machine without bf16 instructions."""
    monkeypatch.setitem(RATES, "bf16_gflops", None)
    monkeypatch.setitem(RATES, "bf16", shared.NO_BF16)
    recipe = make_recipe(
        tmp_path,
        shape_speed={"pairs": 60, "passes": 2},
        training_speed={"examples": 64, "rounds": 3},
        distillation_speed={"rounds": 2, "sequences": 24},
        corpus_speed={"compared_mb": 1, "memory_mb": [1, 2]},
        question_answering_speed={"questions": 40, "rounds": 2},
        latency={"seconds": 1, "lengths": [16, 128]},
    )
    write_evidence(recipe)
    write_csv_record(recipe)
    documents = publish(recipe, monkeypatch)
    table = json.loads((recipe.folder / "tables" / "study.json").read_text())
    assert table["scale"] == recipe.scale and not table["evidence"]["missing"]
    (csv,) = json.loads((recipe.folder / "tables" / "deployment.json").read_text())["csv"]
    made = csv["models"]
    assert [row["model"] for row in made] == ["teacher", "student", "student-random"]
    assert made[2]["over_student"]["high"] < 0 and made[1]["over_student"] is None
    step = json.loads((recipe.folder / "tables" / "distillation.json").read_text())["step"]
    assert step["bf16"] == shared.NO_BF16
    assert [row["variant"] for row in step["rows"]] == ["textbook_fp32", "ours_fp32"]
    table = json.loads((recipe.folder / "tables" / "claims.json").read_text())
    assert table["publication_key"] == publication_key(recipe)  # what build_report.py records
    [shape] = [row for row in table["claims"] if row["kind"] == "shape"]
    assert (shape["value"], shape["low"], shape["high"]) == (1.4, 1.2, 1.5)
    assert shape["verdict"] == "supported" and shape["records"] == ["benchmark/shape_speed"]
    for document, pdf in documents.items():
        assert pdf.startswith(b"%PDF") and pdf == build_report.typeset(document, recipe)
    poster = documents["poster"]
    assert len(re.findall(rb"/Type\s*/Page\b", poster)) == 1, "the poster is one page"
