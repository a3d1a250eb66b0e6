"""The demo's page and its JSON against predict.py's models, in a real server too."""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
import torch

import demo
from distilbert_kit.errors import UserError
from distilbert_kit.models.checkpoints import get_tokenizer
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import (
    DistilBERTForQuestionAnswering,
    DistilBERTForSequenceClassification,
)
from distilbert_kit.paths import CODE
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.study.cells import cells_to_run, demo_cells
from distilbert_kit.study.recipes import load_recipe

QUESTION = {
    "question": "Where is it?",
    "context": "Bob & Ann say <b>it</b> is in Paris, or in Rome.",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder, tiny = tmp_path_factory.mktemp("models"), create_model_config("tiny")
    models = {
        "squad": DistilBERTForQuestionAnswering(tiny),
        "news": DistilBERTForSequenceClassification(tiny, 3, ("bad", "good", "so-so")),
        "similarity": DistilBERTForSequenceClassification(tiny, 1, ("score",)),
    }
    for name, model in models.items():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name, get_tokenizer())
    return folder


def client_of(*paths):
    return demo.create_app(
        {f"{i}-{p.name}": load_predictor(p) for i, p in enumerate(paths)}
    ).test_client()


def test_answers_are_those_of_the_predictor_and_are_marked_in_the_text(folders):
    client = client_of(folders / "squad", folders / "squad")
    (expected,) = load_predictor(folders / "squad")(
        [QUESTION["question"]], [QUESTION["context"]], n_best=demo.N_BEST
    )
    rows = client.post("/predict", data=QUESTION).json
    assert [row["model"] for row in rows] == ["0-squad", "1-squad"]
    for row in rows:
        assert row["answers"] == expected["answers"] and row["milliseconds"] > 0
    page = client.post("/", data=QUESTION).text
    marked = re.findall(r'<div class="context">(.*?)</div>', page, re.DOTALL)
    assert len(marked) == 2 and page.count("<mark>") == 2
    best, context = expected["answers"][0], QUESTION["context"]
    parts = re.fullmatch(r"(.*)<mark>(.*)</mark>(.*)", marked[0], re.DOTALL).groups()
    unescaped = [
        part.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for part in parts
    ]
    assert unescaped == [context[: best["start"]], best["text"], context[best["end"] :]]


def test_labels_of_a_text_and_of_a_pair(folders):
    client, predictor = client_of(folders / "news"), load_predictor(folders / "news")
    for fields, given in [
        ({"text": "a fine film", "second": ""}, "a fine film"),
        ({"text": "a fine film", "second": "dull"}, ("a fine film", "dull")),
    ]:
        (expected,) = predictor([given])
        (row,) = client.post("/predict", data=fields).json
        assert row["label"] == expected["label"]
        assert row["probabilities"] == pytest.approx(expected["probabilities"])
        page = client.post("/", data=fields).text
        assert all(f"{100 * p:.1f} %" in page for p in expected["probabilities"].values())


def test_a_regression_shows_its_score(folders):
    fields = {"text": "a fine film"}
    (row,) = client_of(folders / "similarity").post("/predict", data=fields).json
    page = client_of(folders / "similarity").post("/", data=fields).text
    assert f'<p class="answer">{row["score"]:.2f}</p>' in page


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "who", "context": "  "}, "the context is empty"),
        ({"context": "Bob"}, "the question is empty"),
        ({"question": "who", "context": "a" * 20_001}, "20,001 characters"),
    ],
)
def test_bad_input_is_a_line_on_the_page_and_keeps_what_was_typed(folders, fields, message):
    client = client_of(folders / "squad")
    answer, page = client.post("/predict", data=fields), client.post("/", data=fields)
    assert answer.status_code == page.status_code == 400
    assert message in answer.json["error"] and message in page.text
    assert f'value="{fields.get("question", "")}"' in page.text


def test_models_of_two_kinds_are_refused(folders):
    with pytest.raises(UserError, match="different things"):
        client_of(folders / "squad", folders / "news")


def test_a_real_server_answers_for_folders_of_one_name(folders, tmp_path):
    models = [folders / "news", tmp_path / "news"]
    shutil.copytree(*models)
    command = [sys.executable, CODE / "demo.py", *models, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", address)
        assert "<form" in urllib.request.urlopen(address).read().decode()
        data = urllib.parse.urlencode({"text": "a fine film"}).encode()
        rows = json.load(urllib.request.urlopen(f"{address}/predict", data))
        assert [row["model"] for row in rows] == [str(model) for model in models]
        assert rows[0]["probabilities"] == pytest.approx(rows[1]["probabilities"])
    finally:
        server.kill()
        server.wait()


def test_a_port_in_use_is_one_line(folders, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["demo.py", str(folders / "news"), "--port", port])
        with pytest.raises(SystemExit) as stopped:
            demo.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "choose another --port" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["quick", "study"])
def test_recipes_keep_the_weights_of_their_demo(name):
    recipe = load_recipe(name)
    cells = demo_cells(recipe)
    assert cells and all("--save" in cell.command for cell in cells)
    planned = cells_to_run(recipe, demo=True).values()
    assert all(cell.has_folder() or cell in planned for cell in cells)
