"""Report and poster say what the tables hold, in the colours of the figures."""

import json
import re
import shutil

import numpy as np
import pytest
import typst
import yaml
from committed import committed

from distilbert_kit.paths import EARLIER, PAPER, RECIPES, ROOT
from distilbert_kit.study import claims, figures
from distilbert_kit.study.drawings import distillation, size_speed
from distilbert_kit.study.evidence import history
from distilbert_kit.study.ledger import load_ledger
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record

STUDY = ROOT / "results" / "study"
FORMATS = {"percent": (100, "{:.1f}\u00a0%"), "times": (1, "{:.2f}\u00a0times")}
FORMATS |= {"millions": (1, "{:.1f}\u00a0M"), "points": (1, "{:.1f}\u00a0points")}
FORMATS |= {"ratio": (1, "{:.2f}\u00a0times")}


def written(value, unit):
    """A value of a claim as the report writes it."""
    factor, form = FORMATS[unit]
    return form.format(factor * value).replace("-", "−")


def shown(content):
    """The text in a content tree of Typst."""
    if isinstance(content, list):
        return "".join(map(shown, content))
    if not isinstance(content, dict):
        return ""
    if content.get("func") == "space":
        return " "
    return content.get("text", "") + "".join(map(shown, content.values()))


def text_of(document, label, folder):
    """The text under a label of report or poster, from the tables and figures in `folder`."""
    found = typst.query(
        ROOT / document / f"{document}.typ",
        f"<{label}>",
        field="body",
        one=True,
        root="/",
        sys_inputs={"recipe": "study", "results": str(folder)},
        ignore_system_fonts=True,
    )
    return shown(json.loads(found))


@pytest.fixture
def changed(tmp_path):
    """The study's tables, every number that page 1 and poster read moved, and those tables."""
    if not (STUDY / "figures" / "answer.svg").exists():
        pytest.skip("the tables are older than the report: make notebooks RECIPE=study")
    shutil.copytree(STUDY / "figures", tmp_path / "figures")
    tables = {path.stem: json.loads(path.read_text()) for path in STUDY.glob("tables/*.json")}
    for number, claim in enumerate(tables["claims"]["claims"]):
        for key in ("value", "low", "high"):
            if claim[key] is not None:
                claim[key] += 0.0123 * (number + 1)
    for number, row in enumerate(tables["claims"]["columns"]):
        for kind in ("reproduction", "replication", "reduced"):
            if row[kind]["verdict"] != "not tested":
                row[kind]["value"] += 0.0234 * (number + 1)
    if tables["claims"]["decided"]:
        for key in ("value", "low", "high"):
            tables["claims"]["decided"][key] += 0.0345
    if told := tables["claims"]["paper_size"]:
        for row in told["macro"]:
            row["mean"] += 0.0111
            for end in ("estimate", "low", "high"):
                if "retention" in row:
                    row["retention"][end] += 0.0222
        for end in ("estimate", "low", "high"):
            told["mean_over_control"]["retention"][end] += 0.333
        told["evidence"]["machine_seconds"] += 5 * 3600
    for row in tables["size_speed"]["size"]:
        row["parameters"] += 1_234_567
    slowest = tables["size_speed"]["least_favourable"]
    slowest["bounds"] = [end + 0.31 for end in slowest["bounds"]]
    tables["paper"]["recomputed"]["speedup"] += 0.17
    tables["study"]["evidence"]["machine_seconds"] += 7 * 3600
    (tmp_path / "tables").mkdir()
    for name, content in tables.items():
        (tmp_path / "tables" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path, tables


def headline(tables):
    """What both page 1 and poster say in numbers."""
    found = {claim["id"]: claim for claim in tables["claims"]["claims"]}
    low, high = tables["size_speed"]["least_favourable"]["bounds"]
    kept = tables["claims"]["decided"] or found["glue"]
    return [
        written(found["smaller"]["value"], "percent"),
        *(f"{row['parameters'] / 1e6:.1f}" for row in tables["size_speed"]["size"]),
        f"{found['faster']['value']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{tables['paper']['recomputed']['speedup']:.2f}",
        written(kept["value"], "percent"),
        "[{:.1f}, {:.1f}]".format(*(100 * kept[end] for end in ("low", "high"))),
    ]


def helps(tables):
    """How much distillation helps, as report and poster write it."""
    [claim] = (c for c in tables["claims"]["claims"] if c["id"] == "distillation_helps")
    return written(claim["value"], "ratio")


def control(tables):
    """What page 1 says that the student's layers keep without distillation, at paper size."""
    if not (told := tables["claims"]["paper_size"]):
        return []
    (row,) = (row for row in told["macro"] if row["model"] == told["control"])
    return [written(row["retention"]["estimate"], "percent")]


def test_page_one_follows_the_tables(changed):
    folder, tables = changed
    text = text_of("report", "page-one", folder)
    cells = [
        written(row[kind]["value"], row["unit"])
        for row in tables["claims"]["columns"]
        for kind in ("reproduction", "replication", "reduced")
        if row[kind]["verdict"] != "not tested"
    ]
    assert len(cells) > 10
    for number in headline(tables) + cells + [helps(tables)] + control(tables):
        assert number in text, number


def test_the_poster_follows_the_tables(changed):
    folder, tables = changed
    text = text_of("poster", "poster", folder)
    told = tables["claims"]["paper_size"]
    every = [tables["study"]["evidence"], *([told["evidence"]] if told else [])]
    hours = f"{sum(each['machine_seconds'] for each in every) / 3600:.0f} hours"
    gain = [f"{told['mean_over_control']['retention']['estimate']:.2f}"] if told else []
    for number in [*headline(tables), helps(tables), *gain, hours]:
        assert number in text, number


def test_scores_of_another_recipe_at_paper_size_are_shown(changed):
    folder, tables = changed
    told = tables["claims"]["paper_size"]
    if not told:
        pytest.skip("no other recipe has scores at paper size")
    row = told["rows"][0]
    row["over_seeds"]["mean"], row["interval"] = 0.617, {"low": 0.581, "high": 0.653}
    (folder / "tables" / "claims.json").write_text(json.dumps(tables["claims"]))
    text = text_of("report", "paper-size", folder)
    for said in (row["label"], "61.7", "[58.1, 65.3]", f"{100 * told['macro'][0]['mean']:.1f}"):
        assert said in text, said


def test_with_few_tasks_at_paper_size_the_claim_is_open(changed):
    folder, tables = changed
    if not (told := tables["claims"]["paper_size"]):
        pytest.skip("no other recipe has scores at paper size")
    told |= {"macro": [], "mean_over_control": None, "over_control": []}
    told |= {"rows": told["rows"][:1], "gaps": [], "int8": [], "first_runs": None}
    (folder / "tables" / "claims.json").write_text(
        json.dumps(tables["claims"] | {"decided": None, "paper_size": told})
    )
    assert "do not decide it yet" in text_of("report", "page-one", folder)
    assert "not tested yet" in text_of("poster", "poster", folder)


def texts(figure, tmp_path, monkeypatch):
    """The words in a figure as it is written for the recipe `quick`."""
    recipe = load_recipe("quick")
    monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", tmp_path)
    figures.save_figure(figure, recipe, "drawn")
    content = (recipe.folder / "figures" / "drawn.svg").read_text()
    assert figures.FACE in content
    return [found.strip() for found in re.findall(r">([^<>]+)</text>", content)]


def test_the_figure_of_page_one_says_sizes_times_and_scores(tmp_path, monkeypatch):
    figures.use_style()
    sizes = [{"model": "bert", "parameters": 80e6}, {"model": "distilbert", "parameters": 60e6}]
    slow = {"seconds": {"bert": 10.0, "distilbert": 6.0}}
    share = {"scale": "paper size", "estimate": 0.8, "low": 0.7, "high": 1.1}
    paper = yaml.safe_load(PAPER.read_text())
    for task, printed in (
        ("sentiment", "96.9 %"),
        ("rte", "86.4 %"),
    ):  # its nine tasks; 59.9 / 69.3
        drawn = size_speed.answer(sizes, slow, share | {"tasks": [task]}, paper)
        found = texts(drawn, tmp_path, monkeypatch)
        for said in ("80.0", "60.0", "75.0 %", "6", "60.0 %", "80.0 %", printed, "61.4 %"):
            assert said in found, said
        claims = {said for said in found if said.startswith("claim: ")}
        assert claims == {f"claim: {said}" for said in ("40 % smaller", "60 % faster", "97 % kept")}


def test_an_ablation_is_drawn_with_the_paper_beside_it(tmp_path, monkeypatch):
    rows = [{"label": "without L_ce", "change": -0.05, "low": -0.1, "high": 0.0, "paper": -2.96}]
    drawn = distillation.ablation(load_recipe("quick"), rows)
    [axes] = drawn.axes
    places = {line.get_color(): line.get_xdata() for line in axes.lines if len(line.get_xdata())}
    assert list(places[figures.PAPER]) == [-2.96]
    assert "the paper, its own scale" in texts(drawn, tmp_path, monkeypatch)


def test_what_is_kept_is_drawn_against_tokens(tmp_path, monkeypatch):
    figures.use_style()

    def run(name, tokens, **after):
        losses = {"before": dict.fromkeys(after, 9.0), "after": after}
        return {"model": name, "stage": "distill", "tokens": tokens} | losses

    told = {
        "teacher": "teacher",
        "student": "long",
        "sensitivity": {
            "rows": [
                {
                    "variant": "without_one_answer",
                    "kept": {"estimate": 0.9, "low": 0.85, "high": 0.95},
                }
            ]
        },
        "macro_tasks": ["rte"],
        "control": "cut",
        "macro": [{"model": "teacher"}]
        + [
            {"model": name, "retention": {"estimate": share, "low": share - 0.1, "high": 1.0}}
            for name, share in (("cut", 0.6), ("short", 0.7), ("long", 0.8), ("text", 0.65))
        ],
        "corpus": [
            run("long", 1e8, ce=1.0, mlm=2.0, cos=0.1),
            run("short", 1e6, ce=3.0, mlm=4.0, cos=0.2),
            run("text", 1e6, mlm=5.0),
            run("teacher", 2e6, mlm=6.0) | {"stage": "pretrain"},
        ],
        "curve": {
            "models": ["short", "long"],
            "tokens": [1e6, 1e8],
            "intercept": 0.4,
            "slope": {"estimate": 0.05},
            "target": 0.97,
        },
    }
    drawn = distillation.kept_over_tokens(told, yaml.safe_load(PAPER.read_text()))
    kept, losses = drawn.axes
    places = [(list(line.get_xdata()), list(line.get_ydata())) for line in kept.lines]
    assert ([1e6, 1e8], pytest.approx([70.0, 80.0])) in places  # both the points and the line
    assert ([distillation.NOTHING], [60.0]) in places
    assert any(ys == pytest.approx([90.0]) for _, ys in places)
    assert any(xs == [9.9e9] and ys == pytest.approx([100 * 59.9 / 69.3]) for xs, ys in places)
    assert [9.0, 3.0, 1.0] in [list(line.get_ydata()) for line in losses.lines]
    found = texts(drawn, tmp_path, monkeypatch)
    for said in (
        "distilled",
        "not distilled",
        "text only",
        "without collapse",
        "the paper",
    ):
        assert said in found, said


PAGES = [*(ROOT / "report").glob("*.typ"), *(ROOT / "poster").glob("*.typ")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_nobody_types_a_measured_number(path):
    unit = r"(?:[\s~]+%|\s*(?:points|seconds|times|hours|GFLOP|MB|ms|×))"
    typed = re.findall(rf"(?<![\w.])(\d[\d.]*){unit}", path.read_text())
    assert set(typed) <= {"95", "97", "40", "60"}  # the level, and the question itself


def test_the_poster_is_one_page():
    inputs = {"recipe": "study", "results": "/results/study"}
    pages = typst.compile(
        ROOT / "poster" / "poster.typ",
        root=ROOT,
        sys_inputs=inputs,
        ignore_system_fonts=True,
        format="svg",
    )
    assert isinstance(pages, bytes)  # of several pages it is a list


def test_report_and_figures_share_their_colours():
    text = (ROOT / "report" / "common.typ").read_text()
    for name in ("teacher", "student", "paper"):
        colour = getattr(figures, name.upper())
        assert f'#let {name}-colour = rgb("{colour}")' in text
    used = [path for path in PAGES if 'rgb("' in path.read_text()]
    assert [path.name for path in used] == ["common.typ"], "a colour has one place"


def test_runs_side_by_side_count_once():
    runs = [
        ("2026-01-01T01:00:00Z", 3600),  # 0:00 to 1:00
        ("2026-01-01T01:30:00Z", 3600),  # 0:30 to 1:30
        ("2026-01-01T01:20:00Z", 600),  # inside both
        ("2026-01-01T05:00:00Z", 60),
    ]
    assert history.machine_seconds(runs) == pytest.approx(90 * 60 + 60)
    assert history.machine_seconds(reversed(runs)) == pytest.approx(90 * 60 + 60)
    assert history.machine_seconds([]) == 0


def test_superseded_runs_are_not_those_that_count():
    for recipe, earlier in yaml.safe_load(EARLIER.read_text()).items():
        for run in earlier["superseded"]:
            path = ROOT / "results" / recipe / f"{run['record']}.json"
            if path.exists():
                assert read_record(path).measured.finished != run["finished"], run["record"]


def at_commit(commit, path):
    """A JSON file of `results/` as an earlier commit has it."""
    return json.loads(committed(f"results/{path}", commit))


def test_earlier_claims_and_runs_are_those_of_their_commit():
    earlier, ledger = yaml.safe_load(EARLIER.read_text()), load_ledger()
    runs = earlier["study"]["earlier_claims"]["runs"]
    told = [("study", run["commit"], *claim) for run in runs for claim in run["claims"].items()]
    for making in earlier["base"]["first_runs"]["makings"]:
        told.append(("base", making["commit"], "glue", making["kept"]))
    for name, commit, claim, row in told:  # estimates; intervals follow another rule today
        found = at_commit(commit, f"{name}/claims/verdicts.json")
        recorded = {each["id"]: each for each in found["metrics"]["claims"]}
        assert row["value"] == pytest.approx(recorded[claim]["value"], abs=1e-4)
        assert row["low"] < row["value"] < row["high"]
    rows = claims.earlier_claims(load_recipe("study"), ledger)["claims"]
    assert [row["values"] for row in rows if row["id"] == "glue"] == [
        [run["claims"]["glue"] for run in runs]
    ]
    assert claims.earlier_claims(load_recipe("quick"), ledger) is None


def test_earlier_ablations_are_those_of_their_commits():
    for earlier in yaml.safe_load(EARLIER.read_text())["study"]["earlier_ablations"]:
        table = at_commit(earlier["commit"], "study/tables/ablation.json")
        rows = {row["model"]: row for row in table["rows"]}
        for model, row in earlier["rows"].items():
            assert rows[model].get("distillations", 1) == earlier["distillations"]
            for name, value in row.items():
                assert value == pytest.approx(rows[model][name], abs=1e-5)


def test_the_first_squad_is_that_of_its_commit():
    first = yaml.safe_load(EARLIER.read_text())["study"]["first_squad"]
    for model, score in first["exact_match"].items():
        names = [f"study/finetune/{model}-squad-{seed}.json" for seed in range(first["seeds"])]
        records = [at_commit(first["commit"], name) for name in names]
        assert {record["settings"]["epochs"] for record in records} == {first["epochs"]}
        metrics = [record["metrics"] for record in records]
        found = [each["validation"]["exact_match"] for each in metrics]
        assert score == pytest.approx(np.mean(found), abs=1e-4)
        if model in first["last_loss"]:
            last = [each["history"][-1]["loss"] for each in metrics]
            assert first["last_loss"][model] == pytest.approx(np.mean(last), abs=1e-3)


def test_the_first_latency_is_that_of_its_commit():
    first = yaml.safe_load(EARLIER.read_text())["study"]["first_latency"]
    table = at_commit(first["commit"], "study/tables/latency.json")
    alone = {"size": "paper", "batch": 1}
    wanted = {
        "student_faster": ("student_faster", alone),
        "int8_at_512": ("over_eager", alone | {"backend": "onnx_int8", "length": 512}),
    }
    for name, (key, point) in wanted.items():
        ratios = [r["ratio"] for r in table[key] if point.items() <= r.items()]
        assert first[name]["low"] == pytest.approx(min(ratios), abs=1e-4)
        assert first[name]["high"] == pytest.approx(max(ratios), abs=1e-4)


def test_page_one_names_recipes_that_exist():
    text = (ROOT / "report" / "page-one.typ").read_text()
    named = re.search(r"\(recipes (.+?)\)", text)[1]
    for name in re.findall(r"`(\w+)`", named):
        assert (RECIPES / f"{name}.yaml").exists(), name
