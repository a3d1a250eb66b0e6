"""Predictions by the command line against transformers' models, from every source of texts."""

import gzip
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from rounding import ROUNDING

import predict
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForQuestionAnswering,
    DistilBERTForSequenceClassification,
)
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.prediction import load_predictor

TEXTS = ["a fine film", "the plot is dull, long and dull again", "fine"]
LABELS = ("bad", "good", "so-so")
QUESTION = "Where was the tower built?"
CONTEXT = "The tower, 330\u00a0m tall,\nwas built in Paris — or so they say — in 1889."
BERT = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "num_layers": 2}


def random_model(preset, labels=LABELS, **changes):
    model = DistilBERTForSequenceClassification(
        create_model_config(preset, **changes), len(labels), labels
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_answerer(preset, **changes):
    model = DistilBERTForQuestionAnswering(create_model_config(preset, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    """A student, a BERT, a regression, an int8 graph of the student, two that answer questions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(exported / "news", folder / "student")
    shutil.copytree(exported / "news-int8", folder / "int8")
    models = {
        "bert": random_model("MiniLM-L6", **BERT),
        "regression": random_model("tiny", ("score",)),
        "squad": random_answerer("tiny"),
        "bert-squad": random_answerer("MiniLM-L6", **BERT),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name, get_tokenizer())
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


def test_what_an_int8_graph_says_depends_on_no_neighbour(folders):
    predict_all = load_predictor(folders / "int8")
    assert predict_all(TEXTS) == [predict_all([text])[0] for text in TEXTS]


def test_json_is_json_on_a_terminal_without_unicode(folders, run, monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", plain)
    run("--model", folders / "student", "--json", "café")
    assert json.loads(plain.buffer.getvalue())["text"] == "café"


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
    packed = tmp_path / "packed.csv.gz"  # a table too, whose header is no text
    packed.write_bytes(gzip.compress(table.read_bytes().replace(b"n;Body", b"n;Text")))
    assert run(*model, "--file", packed) == expected


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


def test_empty_texts_are_left_out_on_request_and_counted(
    folders, run, tmp_path, monkeypatch, capsys
):
    table = tmp_path / "texts.csv"
    table.write_text("Text,n\na fine film,1\n,2\nfine,3\n")
    model = ("--model", folders / "student", "--file", table, "--json")
    with pytest.raises(SystemExit):
        run(*model)
    assert "text 2 is empty; write it, or add --drop-missing" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["predict.py", *map(str, model), "--drop-missing"])
    predict.main()
    told = capsys.readouterr()
    assert [row["text"] for row in rows(told.out)] == ["a fine film", "fine"]
    assert told.err == f"{table}: empty texts left out: 1, first 2\n"


def test_order_is_kept_over_batches(folders, run):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(TEXTS, size)) for size in random.integers(1, 40, 200)]
    model = ("--model", folders / "student", "--json")
    together = rows(run(*model, stdin="\n".join(texts)))
    assert [row["text"] for row in together] == texts
    for index in (0, 57, 199):
        (alone,) = rows(run(*model, texts[index]))
        assert same(together[index], alone)


def test_texts_are_cut_where_the_tokenizer_says(folders, run, tmp_path, monkeypatch, capsys):
    tokenizer = get_tokenizer()
    tokenizer.model_max_length = 16
    DistilBERTForSequenceClassification.from_pretrained(folders / "student").save_pretrained(
        tmp_path / "short", tokenizer
    )
    long, short = ("fine " * 14 + "and dull", "fine " * 14)
    first, second = rows(run("--model", tmp_path / "short", "--json", long, short))
    assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6)
    assert (first["truncated"], second["truncated"]) == (True, False)
    config = tmp_path / "short" / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace('"model_max_length": 16', '"model_max_length": 16.0')
    )
    assert rows(run("--model", tmp_path / "short", "--json", long, short)) == [first, second]
    first, second = rows(
        run("--model", tmp_path / "short", "--json", "--max-length", 99, long, short)
    )
    assert first["probabilities"] != second["probabilities"]
    with pytest.raises(UserError, match=r"short: takes at most 512 tokens; lower max_length 513"):
        load_predictor(tmp_path / "short", max_length=513)
    for texts, line in [([long, short], "1 text is"), ([long, long], "2 texts are")]:
        monkeypatch.setattr("sys.argv", ["predict.py", "--model", str(tmp_path / "short"), *texts])
        predict.main()
        assert capsys.readouterr().err == f"{line} cut to 16 tokens\n"


def test_a_question_that_is_cut_is_told(folders, monkeypatch, capsys):
    command = ["--question", "why " * 99, "--context", CONTEXT, "--json"]
    monkeypatch.setattr("sys.argv", ["predict.py", "--model", str(folders / "squad"), *command])
    predict.main()
    told = capsys.readouterr()
    assert json.loads(told.out)["truncated"] and told.err == "1 question is cut to 64 tokens\n"


def test_table_for_people(folders, run):
    output = run("--model", folders / "student", "word " * 100, "fine").splitlines()
    assert len(output) == 2 and output[0].endswith("…") and output[1].endswith("  fine")
    assert output[0].split()[0] in LABELS and 1 / 3 <= float(output[0].split()[1]) <= 1


def test_regression_gives_a_score(folders, run, tmp_path):
    (row,) = rows(run("--model", folders / "regression", "--json", "fine"))
    model = DistilBERTForSequenceClassification.from_pretrained(folders / "regression")
    ids = get_tokenizer()("fine", return_tensors="pt")["input_ids"]
    score = pytest.approx(float(model(ids).logits.detach()))
    assert row == {"text": "fine", "score": score, "truncated": False}
    reranker = shutil.copytree(folders / "regression", tmp_path / "m")  # one output, no kind
    config = json.loads((reranker / "config.json").read_text())
    del config["problem_type"]
    (reranker / "config.json").write_text(json.dumps(config))
    assert rows(run("--model", reranker, "--json", "fine")) == [row]


def test_multi_label_models_with_one_label_and_with_none_that_holds(folders, run, tmp_path):
    model = DistilBERTForSequenceClassification(
        create_model_config("tiny"), labels=("toxic",), multi_label=True
    )
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    classify = transformers.pipeline("text-classification", str(tmp_path / "m"))
    (row,) = rows(run("--model", tmp_path / "m", "--json", "fine"))
    assert row["probability"] == pytest.approx(classify("fine")[0]["score"], abs=1e-5)
    assert row["label"] == "toxic" and row["probabilities"] == {"toxic": row["probability"]}
    torch.nn.init.constant_(model.classifier.bias, -9.0)
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    assert run("--model", tmp_path / "m", "fine").startswith("none, nearest toxic  ")


def answers_of_transformers(folder, question, context):
    """Every span of at most 30 tokens by the library's model: (score, start, end), best first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    sides, spans = encoded.sequence_ids(0), encoded.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        output = model(**encoded)
    start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
    inside = [i for i, side in enumerate(sides) if side == 1]
    return sorted(
        (
            (start[i] + end[j], spans[i][0], spans[j][1])
            for i in inside
            for j in inside
            if i <= j < i + 30
        ),
        reverse=True,
    )


@pytest.mark.parametrize("name", ["squad", "bert-squad"])
def test_saved_folder_opens_in_transformers_and_answers_the_same(folders, run, name):
    model = ("--model", folders / name, "--n-best", 4, "--json")
    (row,) = rows(run(*model, "--question", QUESTION, "--context", CONTEXT))
    assert row["question"] == QUESTION and len(row["answers"]) == 4
    expected = answers_of_transformers(folders / name, QUESTION, CONTEXT)[:4]
    for found, (score, start, end) in zip(row["answers"], expected, strict=True):
        assert (found["start"], found["end"]) == (start, end)
        assert found["text"] == CONTEXT[start:end]
        assert found["score"] == pytest.approx(score, abs=1e-3)


def same(found, expected):
    """Equal rows, whose numbers may have passed through products of other shapes."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(map(same, found.values(), expected.values()))
    return found == expected


def test_all_sources_of_questions_give_the_same(folders, run, tmp_path):
    model = ("--model", folders / "squad", "--json")
    asked = [{"question": QUESTION, "context": CONTEXT}, {"question": "who", "context": "Bob, no"}]
    alone = [
        run(*model, "--question", row["question"], "--context", row["context"]) for row in asked
    ]
    lines = "\n".join(json.dumps(row) for row in asked) + "\n"
    together = run(*model, stdin=lines)  # one batch for both: other shapes, other rounding
    expected = [rows(text)[0] for text in alone]
    assert same(rows(together), expected)
    assert [len(row["answers"]) for row in expected] == [1, 1]
    (tmp_path / "asked.jsonl").write_text(lines)
    assert run(*model, "--file", tmp_path / "asked.jsonl") == together
    (tmp_path / "asked.json").write_text(json.dumps(asked, indent=1))
    assert run(*model, "--file", tmp_path / "asked.json") == together
    table = pd.DataFrame(asked).rename(columns={"question": "Q", "context": "Text"})
    table.to_csv(tmp_path / "asked.csv", index_label="n")
    command = ("--file", tmp_path / "asked.csv", "--columns", "q", "text")
    assert run(*model, *command) == together
    table.rename(columns={"Q": "Query", "Text": "Passage"}).to_csv(tmp_path / "usual.csv")
    assert run(*model, "--file", tmp_path / "usual.csv") == together
    (tmp_path / "context.txt").write_text(CONTEXT)
    asked = (*model, "--question", QUESTION)
    assert run(*asked, "--context-file", tmp_path / "context.txt") == alone[0]
    assert run(*asked, stdin=CONTEXT) == alone[0]


def test_ids_of_the_file_are_kept(folders, run, tmp_path):
    asked = [{"id": "q7", "question": QUESTION, "context": CONTEXT}, {"question": "who", "id": 0}]
    asked[1]["context"] = CONTEXT
    command = ("--model", folders / "squad", "--json")
    found = rows(run(*command, stdin="\n".join(map(json.dumps, asked))))
    assert [row["id"] for row in found] == ["q7", 0]
    pd.DataFrame(asked[:1]).to_csv(tmp_path / "asked.csv")
    qas = [{"question": QUESTION, "id": "q7"}, {"question": QUESTION}]
    squad = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    assert rows(run(*command, "--file", tmp_path / "asked.csv"))[0] == found[0]
    first, second = rows(run(*command, "--file", tmp_path / "dev.json"))
    assert first["id"] == "q7" and "id" not in second


def test_answers_for_people(folders, run):
    command = ("--model", folders / "squad", "--n-best", 2)
    output = run(*command, "--question", QUESTION, "--context", CONTEXT).splitlines()
    best = answers_of_transformers(folders / "squad", QUESTION, CONTEXT)[0]
    assert len(output) == 2 and float(output[0].split()[0]) == pytest.approx(best[0], abs=1e-3)
    assert output[0].split()[1] == f"{best[1]}–{best[2]}"


@pytest.mark.parametrize(
    ("name", "arguments", "stdin", "message"),
    [
        ("student", ["--question", "who"], "", "a classifier; give texts instead of --question"),
        ("squad", ["a text"], "", "it answers questions; give --question and --context"),
        (
            "squad",
            ["--drop-missing"],
            "",
            "--drop-missing is for a classifier's texts; leave it out",
        ),
        ("squad", [], "", "no questions"),
        ("squad", [], "a plain text\n", "line 1 is no JSON"),
        (
            "squad",
            [],
            '[{"question": "who"}\n {"question": "who"}]',
            "not a JSON list (",
        ),
        ("squad", [], '{"question": "who"}', "row 1 has no text 'context'"),
        (
            "squad",
            [],
            '{"question": "who", "context": "\u200b"}',
            "standard input: row 1 has an empty context",
        ),
        ("squad", [], '["who"]', "row 1 has no text 'question'"),
        ("squad", ["--context", "Bob"], "", "--context needs --question"),
        ("squad", ["--question", "who", "--file", "a.csv"], "", "give one of them"),
        ("squad", ["--question", "who", "--context-file", "none.txt"], "", "no such file"),
        ("squad", ["--question", "who", "--context", ""], "", "empty context"),
        ("squad", ["--question", "who", "--n-best", "0"], "", "give at least 1"),
        (
            "squad",
            ["--question", "who", "--max-length", "32"],
            "Bob",
            "max_length 32: stride 1 skips text",
        ),
    ],
)
def test_bad_questions_are_one_line(folders, run, capsys, name, arguments, stdin, message):
    with pytest.raises(SystemExit) as stopped:
        run("--model", folders / name, *arguments, stdin=stdin)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["a", "--file", "b.txt"], "", "give one of them"),
        ([], "", "no texts"),
        ([], "a\n\nb\n", "text 2 is empty"),
        ([], "a\tb\nc\n", "text 2 has 0 tabs and the first 1"),
        ([], "a\tb\tc\n", "text 1 has 2 tabs"),
        (["--file", "nothing.txt"], "", "no such file"),
        (["--file", "texts.jsonl"], "", "reads lines of text or a table"),
        (["--file", "texts.parquet"], "", "reads lines of text or a table"),
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
        (tmp_path / "mlm", "a DistilBertForMaskedLM, which predicts no labels or answers"),
        (tmp_path / "empty", "config.json: missing; give a saved model"),
        (tmp_path, "config.json: missing; give a saved model: mlm in it"),
        (tmp_path / "none", "no such checkpoint folder"),
    ]:
        with pytest.raises(SystemExit):
            run("--model", folder, "a")
        assert message in capsys.readouterr().err


def test_a_model_of_short_windows_answers_from_all_of_a_long_context(run, tmp_path):
    """It was told to raise a length that it does not have."""
    random_answerer("tiny", max_position_embeddings=128).save_pretrained(
        tmp_path / "short", get_tokenizer()
    )
    context = "word " * 300 + CONTEXT
    command = ("--model", tmp_path / "short", "--question", QUESTION, "--context", context)
    (row,) = rows(run(*command, "--n-best", 5000, "--json"))
    assert max(answer["end"] for answer in row["answers"]) > 5 * 300


def test_windows_have_room_for_all_special_tokens_of_the_tokenizer(tmp_path):
    """Of a pair MPNet's has four, one more than BERT's: 195 tokens are one too few for a stride."""
    tokenizer = get_tokenizer("mpnet-base")
    random_answerer("mpnet-base", **BERT).save_pretrained(tmp_path / "m", tokenizer)
    context = "word " * 300 + CONTEXT
    (row,) = load_predictor(tmp_path / "m", 195)([QUESTION], [context], 20_000)
    assert max(answer["end"] for answer in row["answers"]) > 5 * 300


@pytest.mark.parametrize("name", ["student", "squad"])
def test_a_model_whose_outputs_are_not_finite_is_named(folders, tmp_path, name):
    kind = type(load_predictor(folders / name).model)
    model = kind.from_pretrained(folders / name)
    torch.nn.init.constant_(model.encoder.embeddings.norm.weight, torch.nan)
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    texts = [[text] for text in ((QUESTION, CONTEXT) if name == "squad" else TEXTS[:1])]
    with pytest.raises(UserError, match=f"^{tmp_path}/m: the model's outputs are not finite"):
        load_predictor(tmp_path / "m")(*texts)
