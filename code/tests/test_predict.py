"""Predictions by the command line against transformers' pipeline, from every source of texts."""

import io
import json

import numpy as np
import pytest
import torch
import transformers

import predict
from distilbert_kit.config import create_model_config
from distilbert_kit.deploy import save_onnx
from distilbert_kit.model import DistilBERTForMaskedLM, DistilBERTForSequenceClassification
from distilbert_kit.weights import get_tokenizer

TEXTS = ["a fine film", "the plot is dull, long and dull again", "fine"]
LABELS = ("bad", "good", "so-so")


def random_model(preset, labels=LABELS, **changes):
    model = DistilBERTForSequenceClassification(
        create_model_config(preset, **changes), len(labels), labels
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student, a BERT, a regression and an int8 graph of the student."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    bert = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "num_layers": 2}
    models = {
        "student": random_model("tiny"),
        "bert": random_model("MiniLM-L6", **bert),
        "regression": random_model("tiny", ("score",)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name, get_tokenizer())
    save_onnx(models["student"], folder / "int8", get_tokenizer())
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run predict.py with arguments (and standard input): rows of JSON."""

    def start(*arguments, stdin=""):
        monkeypatch.setattr("sys.argv", ["predict.py", *map(str, arguments)])
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        monkeypatch.setattr("sys.stdin", given)
        predict.main()
        return capsys.readouterr().out

    return start


def rows(output):
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("name", ["student", "bert"])
def test_saved_folder_opens_as_a_pipeline_and_predicts_the_same(folders, run, name):
    found = rows(run("--model", folders / name, "--json", *TEXTS))
    classify = transformers.pipeline("text-classification", str(folders / name), top_k=None)
    for row, text, expected in zip(found, TEXTS, classify(TEXTS), strict=True):
        assert row["text"] == text
        assert row["label"] == expected[0]["label"] and row["label"] in LABELS
        scores = {each["label"]: each["score"] for each in expected}
        assert row["probabilities"] == pytest.approx(scores, abs=1e-4)
        assert row["probability"] == max(row["probabilities"].values())


def test_int8_graph_is_a_model_like_any_other(folders, run):
    found = rows(run("--model", folders / "int8", "--json", *TEXTS))
    exact = rows(run("--model", folders / "student", "--json", *TEXTS))
    for row, expected in zip(found, exact, strict=True):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=0.1)


def test_all_sources_give_the_same(folders, run, tmp_path):
    model = ("--model", folders / "student", "--json")
    expected = run(*model, *TEXTS)
    lines = tmp_path / "texts.txt"
    lines.write_text("\ufeff" + "\n".join(TEXTS) + "\n\n")
    assert run(*model, "--file", lines) == expected
    assert run(*model, stdin="\n".join(TEXTS)) == expected
    table = tmp_path / "texts.csv"
    table.write_text("n;Body\n" + "\n".join(f'{i};"{text}"' for i, text in enumerate(TEXTS)))
    assert run(*model, "--file", table, "--columns", "body") == expected


def test_pairs_by_tab_or_by_two_columns(folders, run, tmp_path):
    model = ("--model", folders / "bert", "--json")
    found = rows(run(*model, stdin="a fine film\tit is dull\nfine\tso long\n"))
    table = tmp_path / "pairs.csv"
    table.write_text("a,b\na fine film,it is dull\nfine,so long\n")
    assert rows(run(*model, "--file", table, "--columns", "a", "b")) == found
    classify = transformers.pipeline("text-classification", str(folders / "bert"), top_k=None)
    best = classify({"text": "fine", "text_pair": "so long"})[0]
    assert found[1]["label"] == best["label"]
    assert found[1]["probability"] == pytest.approx(best["score"], abs=1e-4)
    assert found[1]["text"] == ["fine", "so long"]


def test_order_is_kept_over_batches(folders, run):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(TEXTS, size)) for size in random.integers(1, 40, 200)]
    model = ("--model", folders / "student", "--json")
    together = rows(run(*model, stdin="\n".join(texts)))
    assert [row["text"] for row in together] == texts
    for index in (0, 57, 199):
        (alone,) = rows(run(*model, texts[index]))
        assert together[index]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_texts_are_cut_where_the_tokenizer_says(folders, run, tmp_path, capsys):
    tokenizer = get_tokenizer()
    tokenizer.model_max_length = 16
    DistilBERTForSequenceClassification.from_pretrained(folders / "student").save_pretrained(
        tmp_path / "short", tokenizer
    )
    long, short = ("fine " * 14 + "and dull", "fine " * 14)
    first, second = rows(run("--model", tmp_path / "short", "--json", long, short))
    assert first["probabilities"] == second["probabilities"]
    first, second = rows(
        run("--model", tmp_path / "short", "--json", "--max-length", 99, long, short)
    )
    assert first["probabilities"] != second["probabilities"]


def test_table_for_people(folders, run):
    output = run("--model", folders / "student", "word " * 100, "fine").splitlines()
    assert len(output) == 2 and output[0].endswith("…") and output[1].endswith("  fine")
    assert output[0].split()[0] in LABELS and 1 / 3 <= float(output[0].split()[1]) <= 1


def test_regression_gives_a_score(folders, run):
    (row,) = rows(run("--model", folders / "regression", "--json", "fine"))
    model = DistilBERTForSequenceClassification.from_pretrained(folders / "regression")
    ids = get_tokenizer()("fine", return_tensors="pt")["input_ids"]
    assert row == {"text": "fine", "score": pytest.approx(float(model(ids).logits.detach()))}


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["a", "--file", "b.txt"], "", "give one of them"),
        ([], "", "no texts"),
        ([], "a\n\nb\n", "text 2 is empty"),
        ([], "a\tb\nc\n", "text 2 has 0 tabs and the first 1"),
        ([], "a\tb\tc\n", "text 1 has 2 tabs"),
        (["--file", "nothing.txt"], "", "no such file"),
        (["--columns", "a"], "", "--columns needs --file"),
        (["a", "--max-length", "2"], "", "give at least 8"),
    ],
)
def test_bad_input_is_one_line(folders, run, capsys, arguments, stdin, message):
    with pytest.raises(SystemExit) as stopped:
        run("--model", folders / "student", *arguments, stdin=stdin)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_other_heads_and_no_model_are_refused(run, capsys, tmp_path):
    DistilBERTForMaskedLM(create_model_config("tiny")).save_pretrained(tmp_path / "mlm")
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (tmp_path / "mlm", "a DistilBertForMaskedLM, which predicts no labels"),
        (tmp_path / "empty", "no readable config.json"),
        (tmp_path / "none", "no such checkpoint folder"),
    ]:
        with pytest.raises(SystemExit):
            run("--model", folder, "a")
        assert message in capsys.readouterr().err
