"""The README's figures are those of the committed records; its Python runs."""

import json
import re

import torch
from committed import committed

from distilbert_kit.paths import CODE, RECIPES, ROOT

TEXT = (ROOT / "README.md").read_text()


def table(name):
    """A table of the study as it is committed."""
    return json.loads(committed(f"results/study/tables/{name}.json"))


def share(found):
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * found[k] for k in ("value", "low", "high")))


def headline(claims, decided):
    """The rows of the README's first table: claim, measured, verdict.

    `decided` is what answers the claim on understanding at paper size, None before.
    """
    found = {claim["id"]: claim for claim in claims}
    smaller, faster, glue = (found[name] for name in ("smaller", "faster", "glue"))
    count = smaller["detail"]
    passes = "({low:.2f} to {high:.2f} in {passes} passes)"
    latency = table("latency")["student_faster"]
    one_text = [r["ratio"] for r in latency if (r["batch"], r["size"]) == (1, "paper")]
    times = f"{{value:.2f}} times {passes}".format(**faster, passes=faster["interval"].split()[2])
    kept, verdict = "at paper size: not yet", "not tested"
    if decided:
        seeds = "one seed" if decided["seeds"] == 1 else f"{decided['seeds']} seeds or more"
        kept = (
            f"{share(decided)} over {len(decided['tasks'])} tasks, {seeds}, with a student "
            f"distilled on {decided['tokens'] / 1e6:.0f} M tokens (recipe `{decided['recipe']}`)"
        )
        verdict = decided["verdict"]
    return [
        ("40 % smaller", f"{100 * smaller['value']:.1f} %: {count}", smaller["verdict"]),
        (
            "60 % faster",
            f"{times}, the least favourable of four settings; with other software, lengths and "
            f"threads {min(one_text):.2f} to {max(one_text):.2f}",
            faster["verdict"],
        ),
        ("97 % of GLUE", kept, verdict),
        (
            "the same with small models (no evidence on BERT)",
            f"{share(glue)} over {len(glue['tasks'])} tasks is kept by 3 layers of a "
            "6-layer teacher",
            "decides nothing",
        ),
    ]


def test_the_first_paragraph_says_what_was_found_at_paper_size():
    found = table("claims")
    told, tasks = found["paper_size"], found["decided"]["tasks"]
    rows = {row["model"]: row for row in told["macro"]}
    kept = {name: row["retention"]["estimate"] for name, row in rows.items() if "retention" in row}
    student, control = told["student"], told["control"]
    (text_only,) = (row["model"] for row in told["ablation"] if not row["taught"])
    printed = table("paper")["table1_glue_dev"]
    theirs, bert = (sum(printed[who][t] for t in tasks) for who in ("distilbert", "bert_base"))
    ours, teacher = (
        sum(rows[name]["scores"][task]["median"] for task in tasks)
        for name in (student, told["teacher"])
    )
    collapsed = [
        run
        for run in told["sensitivity"]["one_answer"]
        if run["model"] == student and run["task"] in tasks
    ]
    assert set(rows[text_only]["retention"]["seeds"].values()) == {found["minimum_seeds"]} == {3}
    [first] = [r for r in told["sensitivity"]["rows"] if r["variant"] == "first_seeds"]
    varied = [r for r in told["sensitivity"]["rows"] if r["variant"] == "without_task"]
    most = max(varied, key=lambda row: row["kept"]["estimate"])
    assert (set(tasks) - set(most["tasks"])) == {collapsed[0]["task"]} == {"cola"}
    rest, of_bert = (
        sum(printed[who][t] for t in most["tasks"]) for who in ("distilbert", "bert_base")
    )
    better = [r for r in told["over_control"] if r["task"] in tasks and r["effect"] == "rise"]
    assert (len(better), len(tasks), len(collapsed)) == (2, 5, 1)
    [squad] = [row for row in table("scores")["over_control"] if row["task"] == "squad"]
    said = " ".join(TEXT.split())
    for words in (
        f"student keeps {100 * kept[student]:.1f} % of the score of its 12-layer teacher",
        f"the paper's student keeps {100 * theirs / bert:.1f} % of BERT's",
        f"The same layers, only fine-tuned, keep {100 * kept[control]:.1f} %",
        f"1 million tokens without the teacher they keep {100 * kept[text_only]:.1f} % (3 seeds; "
        f"on these the student keeps {100 * first['kept']['estimate']:.1f} %)",
        "On two of five tasks the distilled student is significantly better",
        f"over the other four tasks our student keeps {100 * most['kept']['estimate']:.1f} %, "
        f"the paper's {100 * rest / of_bert:.1f} %",
        f"A small student scores {-100 * squad['gap']['estimate']:.1f} points less on SQuAD than "
        f"its layers alone ({'not ' * (squad['effect'] == 'none')}significant)",
        "On CoLA one of its fine-tunings gave one answer",
        f"with medians over the seeds, as in the paper, it keeps {100 * ours / teacher:.1f} %",
    ):
        assert words in said, words


def test_the_answer_is_that_of_the_committed_claims():
    found = table("claims")
    claims, decided = found["claims"], found["decided"]
    rows = TEXT.split("\n\n")[2].splitlines()[2:]
    assert [tuple(row.strip("| ").split(" | ")) for row in rows] == headline(claims, decided)
    for claim in claims:  # any other figure would be another answer
        if claim["id"] in ("smaller", "faster", "glue"):
            other = [{**c, "value": 1.1 * c["value"]} if c is claim else c for c in claims]
            assert headline(other, decided) != headline(claims, decided)


def test_the_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(67280421310721)  # a new process has it
    exec(program, {})
    assert capsys.readouterr().out.splitlines()[-1] == "positive"


def test_every_recipe_and_folder_is_named():
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE))
    assert named == {path.stem for path in RECIPES.glob("*.yaml")}
    for name in re.findall(r"`(code/[\w/.]*|data/[\w.]*)`", TEXT):
        assert (ROOT / name).exists() or (CODE / "distilbert_kit" / name).exists(), name
    for name in re.findall(r"\]\(([^)]+)\)", TEXT):
        if name.startswith("results/"):
            assert committed(name), name
        else:
            assert name.startswith("https://arxiv.org/") or (ROOT / name).is_file(), name
