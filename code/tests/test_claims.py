"""The paper's claims, judged on invented records."""

import json

import numpy as np
import pytest
import yaml
from invented import RECIPE, make_recipe, write_evidence

from benchmarks import shared
from distilbert_kit.errors import UserError
from distilbert_kit.paths import CLAIMS, ROOT
from distilbert_kit.study import claims, tables
from distilbert_kit.study.cells import model_cell
from distilbert_kit.study.evidence import history, scores
from distilbert_kit.study.ledger import (
    Claim,
    _current_key,
    decided,
    evidence_by_column,
    load_ledger,
    summary_at_paper_size,
    verdict_key,
    verdict_rows,
)
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record, recording

LEDGER = load_ledger()


def claim(**changes):
    fixed = {"id": "c", "title": "t", "quote": "q", "where": "w", "metric": "m"}
    fixed |= {"kind": "gap", "unit": "points", "expected": 10.0, "tolerance": 1.0}
    return Claim(**fixed | {"direction": "at least"} | changes)


def write_verdicts(beside, name, scale, metrics):
    """The verdict record of the recipe called `name`, beside the results of another."""
    path = beside.folder.parent / name / "claims" / "verdicts.json"
    given = {"stage": "claims", "cell": {}, "scale": scale, "recipe": name, "settings": {}}
    with recording(path, **given, key=verdict_key(load_recipe(name), load_ledger())) as draft:
        draft.metrics = metrics


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        ("at least", 9.0, 12.0, "supported"),  # the tolerance itself is inside
        ("at least", 9.5, 99.0, "supported"),  # more than claimed is no fault
        ("at least", 8.9, 12.0, "undecided"),
        ("at least", 2.0, 8.9, "not supported"),
        ("at least", 5.0, 9.0, "undecided"),  # the edge alone
        ("at most", 11.0, 15.0, "undecided"),
        ("at most", -5.0, 11.0, "supported"),
        ("at most", 10.5, 11.5, "undecided"),
        ("at most", 11.1, 12.0, "not supported"),
        ("about", 9.2, 10.8, "supported"),
        ("about", 9.2, 11.2, "undecided"),
        ("about", 8.0, 12.0, "undecided"),
        ("about", 11.1, 12.0, "not supported"),
        ("about", 7.0, 8.5, "not supported"),
    ],
)
def test_verdict_follows_the_whole_interval(direction, low, high, verdict):
    finding = claims.Finding(value=(low + high) / 2, low=low, high=high)
    assert claims.judge(claim(direction=direction), finding, LEDGER)[0] == verdict


def test_too_few_seeds_and_untested():
    inside = {"value": 10.0, "low": 9.9, "high": 10.1}
    assert claims.judge(claim(), claims.Finding(**inside, seeds=3), LEDGER)[0] == "supported"
    assert claims.judge(claim(), claims.Finding(**inside, seeds=2), LEDGER)[0] == "undecided"
    outside = {"value": 1.0, "low": 0.5, "high": 1.5}
    assert claims.judge(claim(), claims.Finding(**outside, seeds=3), LEDGER)[0] == "not supported"
    few = claims.judge(claim(), claims.Finding(**outside, seeds=1, incomplete="2 tasks"), LEDGER)
    why = "too little was run to decide: 1 seed instead of 3, 2 tasks"
    assert few == ("undecided", f"the whole interval is outside what the claim allows, but {why}")
    # A value that is only an indication never decides.
    untested = claims.Finding(**inside, seeds=3, untested="reduced scale")
    assert claims.judge(claim(), untested, LEDGER) == ("not tested", "reduced scale")
    assert claims.judge(claim(), claims.Finding(untested="no record"), LEDGER)[0] == "not tested"
    assert claims.judge(claim(), claims.Finding(), LEDGER)[0] == "not tested"


@pytest.mark.parametrize(
    ("low", "tokens", "verdict"),
    [
        (0.5, 10**6, "undecided"),  # a student that read little refutes nothing
        (0.5, 10**9, "not supported"),
        (0.5, None, "not supported"),  # released weights
        (9.5, 10**6, "supported"),  # with little text is more than was claimed
    ],
)
def test_a_score_too_low_needs_a_student_that_read_enough(low, tokens, verdict):
    finding = claims.Finding(value=low, low=low, high=low + 1, seeds=3, tokens=tokens)
    found, reason = claims.judge(claim(), finding, LEDGER)
    assert found == verdict
    assert ("1.0 instead of 1,000 million tokens" in reason) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("steps", "shown", "verdict"),
    [
        ([(2, 1, 3), (5, -2, 13), (9, 7, 11)], (5, -2, 13), "undecided"),  # never a mix of two
        ([(2, 1, 3), (5, 2, 13)], (2, 1, 3), "supported"),
        ([(-2, -3, -1), (0, -9, 9)], (-2, -3, -1), "not supported"),  # one refuted step is enough
        ([(-2, -3, 0), (0, -9, 9)], (0, -9, 9), "undecided"),  # the edge refutes nothing
    ],
)
def test_an_order_shows_the_step_that_decides_it(monkeypatch, steps, shown, verdict):
    ends = ("estimate", "low", "high")
    gaps = [dict(zip(ends, (n / 100 for n in step))) | {"seeds": {"cola": 3}} for step in steps]
    monkeypatch.setattr(claims, "order_rows", lambda *arguments: [{"gap": gap} for gap in gaps])
    found = claims.measure(claim(kind="order"), None, [], [])
    values = [found["factor"] * found[end] for end in ends]
    assert values == pytest.approx(shown)
    finding = claims.Finding(**dict(zip(("value", "low", "high"), values)), seeds=3)
    assert claims.judge(claim(kind="order", expected=0, tolerance=0), finding, LEDGER)[0] == verdict


def test_ledger_is_checked(tmp_path, monkeypatch):
    assert len({c.id for c in load_ledger().claims}) == len(load_ledger().claims)
    content = yaml.safe_load(CLAIMS.read_text())
    content["claims"][0]["tolerence"] = 1
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr("distilbert_kit.study.ledger.CLAIMS", tmp_path / "claims.yaml")
    with pytest.raises(UserError, match=r"claims\.0\.tolerence"):
        load_ledger()


def test_size_and_speed_claims(tiny):
    found = {row["id"]: row for row in claims.judge_all(tiny, load_ledger())}
    assert found["smaller"]["value"] == pytest.approx(1 - 66_362_880 / 109_482_240)
    assert found["parameters_distilbert"]["value"] == pytest.approx(66.362880)
    assert found["parameters_bert"]["value"] == pytest.approx(109.482240)
    assert found["smaller"]["verdict"] == "supported"
    record = history.benchmark_record(tiny, "size_speed")
    # The ratio of two totals inside the wider of both bounds; the setting is named.
    passes = {
        name: {maker: np.array(each) for maker, each in measured["pass_seconds"].items()}
        for name, measured in record.measured.extra.items()
    }
    totals = [
        seconds[f"bert/{maker}"].sum() / seconds[f"distilbert/{maker}"].sum()
        for seconds in passes.values()
        for maker in shared.MAKERS
    ]
    lows = [
        min(
            (passes[name][f"bert/{maker}"] / passes[name][f"distilbert/{maker}"]).min(),
            measured["over_pairs"][maker]["low"],
        )
        for name, measured in record.measured.extra.items()
        for maker in shared.MAKERS
    ]
    faster = found["faster"]
    assert any(faster["value"] == pytest.approx(total) for total in totals)
    assert faster["low"] == pytest.approx(min(lows)) and faster["low"] < faster["value"]
    assert faster["value"] < faster["high"]
    assert faster["interval"] == "range of 3 passes and interval over pairs, the wider"
    assert "with 1 thread" in faster["detail"] or "with 2 threads" in faster["detail"]
    assert faster["scale"] == "paper size"


def test_reduced_results_are_indications_only(tiny):
    found = {row["id"]: row for row in claims.judge_all(tiny, load_ledger())}
    for name in ("glue", "sst2"):
        assert found[name]["verdict"] == "not tested"
        assert found[name]["scale"] == "embedded scale"
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert "embedded scale" in found[name]["reason"]
    for name in ("imdb", "loss_ce", "phone_speed"):
        assert found[name]["verdict"] == "not tested" and found[name]["value"] is None


def test_paper_scale_with_a_distilled_student_is_judged(results, tmp_path):
    models = RECIPE["models"] | {"student": {"label": "distilled", "weights": "minilm"}}
    recipe = make_recipe(
        tmp_path, scale="paper", models=models, student="student", tasks=["sst2", "rte"]
    )
    write_evidence(recipe)
    ledger = load_ledger()
    sst2 = next(c for c in ledger.claims if c.id == "sst2")
    finding = claims.find(sst2, recipe)
    assert not finding.untested and finding.scale == "paper scale" and finding.seeds == 2
    rows = scores.score_rows(recipe)
    mean = {
        row["model"]: row["over_seeds"]["mean"]
        for row in rows
        if row["task"] == "sst2" and row["primary"]
    }
    assert finding.value == pytest.approx(100 * (mean["student"] - mean["teacher"]))
    glue = claims.find(next(c for c in ledger.claims if c.id == "glue"), recipe)
    assert "only 2 of the claim's 9 tasks" in glue.untested
    printed = claim(kind="above_printed", printed="table1_glue_dev.elmo", tasks=["sst2", "rte"])
    elmo = tables.paper()["table1_glue_dev"]["elmo"]
    above = claims.find(printed, recipe)
    ours = [r for r in rows if r["model"] == "student" and r["primary"]]
    mean = np.mean([row["over_seeds"]["mean"] for row in ours if row["task"] in printed.tasks])
    assert above.value == pytest.approx(100 * mean - (elmo["sst2"] + elmo["rte"]) / 2)
    assert above.low < above.value < above.high
    control = claims.find(
        claim(kind="retention", reference="undistilled", tasks=["sst2", "rte"]), recipe
    )
    assert not control.untested and control.low <= control.value <= control.high


def test_a_difference_that_is_not_shown_is_said_to_be_none():
    helps = claim(expected=0.0, tolerance=0.0, direction="at most")
    found = claims.Finding(value=-1.0, low=-3.0, high=1.0)
    assert claims.judge(helps, found, LEDGER)[0] == "undecided"
    assert "no difference is shown" in claims.judge(helps, found, LEDGER)[1]
    ratio = {"kind": "retention", "expected": 1.0, "tolerance": 0.0}
    around_one = claims.Finding(value=1.0, low=0.9, high=1.1)
    assert "no difference is shown" in claims.judge(claim(**ratio), around_one, LEDGER)[1]
    for other in (
        claim(expected=0.0, tolerance=0.0, direction="about"),
        claim(expected=0.0, tolerance=0.5, direction="at most"),
        claim(expected=1.0, tolerance=0.0, direction="at most"),
    ):
        verdict, reason = claims.judge(other, claims.Finding(value=0.7, low=-3, high=3), LEDGER)
        assert verdict == "undecided" and "crosses the edge" in reason
    inside = claims.Finding(value=-2.0, low=-3.0, high=-1.0, seeds=3, incomplete="2 of 9 tasks")
    assert claims.judge(helps, inside, LEDGER) == (
        "undecided",
        "the whole interval is inside what the claim allows, but too little was run to decide: "
        "2 of 9 tasks",
    )


def test_little_difference_is_judged_on_both_sides():
    mlm = next(c for c in load_ledger().claims if c.id == "loss_mlm")
    for value, verdict in ((-0.3, "supported"), (-5.0, "not supported"), (5.0, "not supported")):
        found = claims.Finding(value=value, low=value - 0.2, high=value + 0.2, seeds=3)
        assert claims.judge(mlm, found, LEDGER)[0] == verdict


def test_other_recipes_speak_beside_ones_own(results, tmp_path):
    """A reduced verdict from the other recipe's record; own evidence comes first in its column."""
    ledger = load_ledger()
    study = make_recipe(tmp_path, name="other", scale="reduced", tasks=["sst2"])
    write_evidence(study)
    rows = claims.judge_all(study, ledger)
    write_verdicts(study, "study", "reduced", {"claims": rows})
    own = make_recipe(tmp_path)
    write_evidence(own)
    mine = claims.judge_all(own, ledger)
    cells = {row["id"]: row for row in evidence_by_column(own, ledger, mine)}
    [sst2] = [row for row in rows if row["id"] == "sst2"]
    assert cells["sst2"]["reduced"]["recipe"] == "study"
    assert cells["sst2"]["reduced"]["verdict"] == sst2["column_verdict"] != "not tested"
    keys = ("value", "low", "high", "detail", "seeds", "tasks", "tokens")
    told = {key: cells["sst2"]["reduced"][key] for key in keys}
    assert told == json.loads(json.dumps({key: sst2[key] for key in keys}))
    assert sst2["verdict"] == "not tested"  # an indication never decides
    assert cells["sst2"]["reproduction"] == {"verdict": "not tested", "reason": "not run"}
    assert cells["smaller"]["replication"]["recipe"] == own.name
    assert cells["phone_size"]["replication"]["verdict"] == "not tested"


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("released", "reproduction"),
        ("paper", "replication"),
        ("base", "replication"),
        ("scratch", "replication"),
        ("study", "reduced"),
        ("quick", "reduced"),
    ],
)
def test_only_the_authors_weights_are_a_reproduction(name, column):
    assert claims.column_of(load_recipe(name)) == column


def test_weights_of_a_like_name_are_not_the_authors(tmp_path):
    content = yaml.safe_load((ROOT / "code/recipes/released.yaml").read_text()) | {"name": "own"}
    for weights, column in (
        ("distilbert/distilbert-base-uncased@main", "reproduction"),
        ("someone/distilbert-base-uncased", "replication"),
        ("./my-distilbert-ablation", "replication"),
    ):
        content["models"][content["student"]]["weights"] = weights
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        assert claims.column_of(load_recipe(tmp_path / "own.yaml")) == column


@pytest.mark.parametrize("changed", ["rules", "records"])
def test_verdicts_on_other_records_or_by_other_rules_are_refused(
    results, tmp_path, monkeypatch, changed
):
    """The recipes are known by name; their results are those of the test."""
    study, base, own = load_recipe("study"), load_recipe("base"), make_recipe(tmp_path)
    write_verdicts(own, "study", "reduced", {"claims": claims.judge_all(study, LEDGER)})
    write_verdicts(own, "base", "paper", {"claims": [], "summary": {"name": "base"}})

    def shown():
        _current_key.cache_clear()  # as in another run
        evidence_by_column(own, load_ledger(), claims.judge_all(own, load_ledger()))
        return summary_at_paper_size(own, load_ledger())

    assert shown() == {"name": "base"}
    if changed == "rules":
        content = yaml.safe_load(CLAIMS.read_text())
        content["claims"][0]["tolerance"] += 1
        (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        monkeypatch.setattr("distilbert_kit.study.ledger.CLAIMS", tmp_path / "claims.yaml")
    else:
        cell = model_cell(base, base.student)
        given = {"stage": cell.stage, "cell": cell.identity, "scale": "paper", "recipe": "base"}
        with recording(cell.record, **given, settings={}):
            pass
    refused = r"verdicts\.json: not of the .* that are there; run claims\.py --recipe base$"
    with pytest.raises(UserError, match=refused):
        shown()
    with pytest.raises(UserError, match=refused):
        summary_at_paper_size(own, load_ledger())
    assert verdict_rows(study, "study")  # a recipe's own are judged anew by claims.py


def test_a_student_whose_distillation_has_no_record_is_not_judged(results, tmp_path):
    recipe = make_recipe(tmp_path, tasks=["sst2"], seeds=[0, 1, 2])
    write_evidence(recipe)
    sst2 = next(c for c in LEDGER.claims if c.id == "sst2")
    assert claims.find(sst2, recipe).tokens > 0
    model_cell(recipe, recipe.student).record.unlink()
    reason = f"the record of the distillation of {recipe.student!r} is missing"
    assert claims.judge(sst2, claims.find(sst2, recipe), LEDGER) == ("not tested", reason)


def test_the_summary_that_was_recorded_is_of_todays_form(results, tmp_path):
    """The report reads that of recipe `base` from its verdicts: run claims.py --recipe base."""
    path = ROOT / "results" / "base" / "claims" / "verdicts.json"
    if not path.is_file():
        pytest.skip("the records of base were removed")
    recipe = make_recipe(tmp_path)
    write_evidence(recipe)
    assert read_record(path).metrics["summary"].keys() == tables.summary(recipe).keys()


@pytest.mark.parametrize("name", ["base", "study"])
def test_the_committed_verdicts_are_of_the_committed_records(name):
    """Run claims.py --recipe NAME after its records or the ledger have changed."""
    recipe = load_recipe(name)
    path = recipe.folder / "claims" / "verdicts.json"
    if not path.is_file():
        pytest.skip(f"the records of {name} were removed")
    assert read_record(path).key == verdict_key(recipe, LEDGER)


def test_the_authors_weights_decide_before_ours():
    theirs, ours, nothing = ({"verdict": v} for v in ("supported", "undecided", "not tested"))
    other = {"id": "sst2", "reproduction": theirs, "replication": theirs}
    for reproduction, replication, expected in (
        (theirs, ours, theirs),
        (nothing, ours, ours),
        (nothing, nothing, None),
    ):
        glue = {"id": "glue", "reproduction": reproduction, "replication": replication}
        assert decided([other, glue | {"reduced": theirs}]) is expected


def test_a_task_outside_of_the_mean_is_judged_alone(results, tmp_path):
    recipe = make_recipe(tmp_path, seeds=[0], tasks=["sst2", "wnli"], macro=["sst2"])
    write_evidence(recipe)
    alone, mean = (claims.find(claim(tasks=t), recipe) for t in (["wnli"], ["sst2", "wnli"]))
    assert (alone.tasks, alone.incomplete) == (("wnli",), "")
    assert (mean.tasks, mean.incomplete) == (("sst2",), "1 of the claim's 2 tasks")
    assert (mean.seeds, mean.interval) == (1, "over examples, one seed")


def test_scores_at_paper_size_are_told_beside_those_of_small_models(results, tmp_path):
    own, ledger = make_recipe(tmp_path), load_ledger()
    assert summary_at_paper_size(own, ledger) is None
    big = make_recipe(tmp_path, name="other", scale="paper", tasks=["sst2"])
    write_evidence(big)
    write_verdicts(own, "base", "paper", {"claims": [], "summary": tables.summary(big)})
    told = summary_at_paper_size(own, ledger)
    assert told == json.loads(json.dumps(tables.summary(big)))
    assert {row["model"] for row in told["rows"]} >= {big.teacher, big.student}
    [gap] = told["gaps"]
    means = {row["model"]: row["over_seeds"]["mean"] for row in told["rows"]}
    assert gap["gap"]["estimate"] == pytest.approx(means[big.student] - means[big.teacher])


def test_a_student_that_is_only_cut_is_no_distilled_student(results, tmp_path):
    recipe = make_recipe(tmp_path, student="undistilled")
    write_evidence(recipe)
    glue = next(c for c in load_ledger().claims if c.id == "glue")
    assert "not distilled" in claims.find(glue, recipe).untested


def test_what_is_said_of_the_runs_of_base_is_what_ran():
    runs = [path.stem.split("-") for path in (ROOT / "results/base/finetune").glob("*.json")]
    if not runs:
        pytest.skip("the records of base were removed")
    said = " ".join(row.here for row in LEDGER.deviations if row.recipes == ["base"])
    assert ("one seed so far" in said) == ({seed for _, _, seed in runs} == {"0"})
    assert ("IMDb and SQuAD have not run" in said) == {"imdb", "squad"}.isdisjoint(
        task for _, task, _ in runs
    )
