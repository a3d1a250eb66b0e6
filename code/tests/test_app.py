"""The page's JSON API against the predictors, its bounds, its description."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from scipy.special import softmax
from serving import serving_here

import demo
from distilbert_kit.models.model import DistilBERTForQuestionAnswering
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve import app, comparison
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.export import FILES
from distilbert_kit.serve.prediction import load_predictor

QUESTION = {
    "question": "Where is it?",
    "context": "Bob & Ann 😀 say <b>it</b> is in Paris, or in Rome.",
}

TEXT = {"text": "a fine film"}


def client_of(*paths, load=True):
    compared = Comparison({f"{i}-{p.name}": p for i, p in enumerate(paths)}, Path())
    if load:
        for model in compared.models:
            compared._load(model)
        compared.doing = ""
    return app.create_app(compared).test_client()


def check(schema, row):
    found = {"$ref": f"#/components/schemas/{schema}", **app.describe()}
    jsonschema.Draft202012Validator(found).validate(row)


def test_answers_are_those_of_the_predictor_with_probabilities(exported):
    client = client_of(exported / "squad", exported / "squad")
    (expected,) = load_predictor(exported / "squad")(
        [QUESTION["question"]], [QUESTION["context"]], n_best=comparison.N_BEST
    )
    rows = client.post("/answer", json=QUESTION).json
    assert [row["model"] for row in rows] == ["0-squad", "1-squad"]
    shares = softmax([found["score"] for found in expected["answers"]])
    for row in rows:
        check("AnswerRow", row)
        assert len(row["answers"]) == comparison.SHOWN
        for found, wanted, share in zip(row["answers"], expected["answers"], shares, strict=False):
            assert found["text"] == QUESTION["context"][found["start"] : found["end"]]
            assert (found["start"], found["end"]) == (wanted["start"], wanted["end"])
            assert found["probability"] == pytest.approx(share, rel=1e-4)
        size = (exported / "squad" / "model.safetensors").stat().st_size
        assert row["milliseconds"] > 0 and row["megabytes"] == round(size / 1e6, 1)


def test_a_model_whose_outputs_are_not_finite_is_called_by_its_name(exported, tmp_path):
    model = DistilBERTForQuestionAnswering.from_pretrained(exported / "squad")
    torch.nn.init.constant_(model.encoder.embeddings.norm.weight, torch.nan)
    model.save_pretrained(tmp_path / "broken", get_tokenizer())
    answer = client_of(tmp_path / "broken").post("/answer", json=QUESTION)
    assert answer.status_code == 400
    assert answer.json["error"].startswith("0-broken: the model's outputs are not finite")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_labels_of_a_text_and_of_a_pair(exported, precision):
    folder = exported / ("news" if precision == "fp32" else "news-int8")
    client, predictor = client_of(folder), load_predictor(folder)
    for fields, given in [
        ({"text": "a fine film", "second": " "}, "a fine film"),
        ({"text": "a fine film", "second": "dull"}, ("a fine film", "dull")),
    ]:
        (expected,) = predictor([given])
        (row,) = client.post("/classify", json=fields | {"precision": precision}).json
        check("LabelRow", row)
        assert row["label"] == expected["label"]
        assert row["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-4)


def test_a_regression_gives_its_score(exported):
    (row,) = client_of(exported / "similarity").post("/classify", json=TEXT).json
    (expected,) = load_predictor(exported / "similarity")([TEXT["text"]])
    check("LabelRow", row)
    assert row["score"] == pytest.approx(expected["score"], rel=1e-4) and "label" not in row


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"question": "who", "context": "  "}, 400, "context: is empty"),
        ({"context": "Bob"}, 400, "question: Field required"),
        ({"question": "who", "context": "a\0b"}, 400, "null character"),
        ({"question": "who", "context": 3}, 400, "valid string"),
        ({"question": "who", "context": "Bob", "more": 1}, 400, "more: Extra"),
        ({"question": "who", "context": "Bob", "precision": "int4"}, 400, "precision: "),
        ({"question": "who", "context": "a" * (app.LONGEST + 1)}, 413, "12000 characters"),
        ({"question": "who", "context": "a" * app.MOST_BYTES}, 413, "exceeds"),
        ({"question": "​", "context": "Bob"}, 400, "empty question"),
        ({"question": "who", "context": "!" * app.LONGEST}, 413, "of 384 tokens, at most 20"),
        ({"question": "who", "context": "木" * app.LONGEST}, 413, "of 384 tokens, at most 20"),
    ],
)
def test_bad_input_is_one_line(exported, fields, status, message):
    found = client_of(exported / "squad").post("/answer", json=fields)
    check("Problem", found.json)
    assert found.status_code == status and message in found.json["error"]
    assert "\n" not in found.json["error"]


def test_the_longest_pair_is_read_and_a_null_character_in_it_refused(exported):
    """JSON writes an emoji as two escapes."""
    client = client_of(exported / "news")
    pair = {"text": "😀" * app.LONGEST, "second": "😀" * app.LONGEST}
    body = json.dumps(pair, indent=1)
    found = client.post("/classify", data=body, content_type="application/json")
    assert len(body) > 24 * app.LONGEST and found.status_code == 200
    found = client.post("/classify", json=TEXT | {"second": "\0"})
    assert found.status_code == 400 and "second: holds a null character" in found.json["error"]


def test_another_host_or_method_is_refused(exported):
    client = client_of(exported / "news")
    for host, status in [
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("rebound.example:8000", 421),
        ("", 421),
    ]:
        found = client.get("/state", headers={"Host": host})
        assert found.status_code == status, host
    assert "ask for 127.0.0.1" in found.json["error"]
    found = client.get("/classify")
    assert found.status_code == 405 and "POST" in found.headers["Allow"]
    compared = Comparison({"news": exported / "news"}, Path())
    for host, status in [("0.0.0.0", 200), ("10.0.0.1", 421)]:
        client = app.create_app(compared, host).test_client()
        found = client.get("/state", headers={"Host": "my-desktop"})
        assert found.status_code == status, host


class EndsInBetween(Comparison):
    """Loading ends right after it was asked what is ready."""

    def is_ready(self, task, precision="fp32"):
        found = super().is_ready(task, precision)
        for model in self.models:
            self._load(model)
        self.doing = ""
        return found


def test_loading_that_ends_in_between_is_not_taken_for_one_that_ended_before(exported):
    """The page would ask no more, and a program be told that there is no such form."""
    client = app.create_app(EndsInBetween({"news": exported / "news"}, Path())).test_client()
    state = client.get("/state").json
    assert state["doing"] or state["ready"]["text-classification"]
    compared = EndsInBetween({"news": exported / "news"}, Path())
    assert app.create_app(compared).test_client().post("/classify", json=TEXT).status_code == 503
    compared = EndsInBetween({"news": exported / "news"}, Path())
    with serving_here(compared) as port:
        demo.check(f"http://127.0.0.1:{port}", compared)


def test_what_is_not_there_yet_or_at_all_is_told(exported):
    loading = client_of(exported / "squad", load=False)
    found = loading.post("/answer", json=QUESTION)
    assert found.status_code == 503 and "not ready" in found.json["error"]
    assert loading.get("/state").json["ready"] == {"question-answering": []}
    found = loading.post("/classify", json=TEXT)
    assert found.status_code == 400 and "no model for text-classification" in found.json["error"]
    found = client_of(exported / "squad").post("/answer", json=QUESTION | {"precision": "int8"})
    assert found.status_code == 400 and "an int8 form" in found.json["error"]
    found = loading.post("/answer", data=QUESTION)
    assert found.status_code == 415 and "application/json" in found.json["error"]
    assert loading.get("/elsewhere").status_code == 404


def test_loading_makes_int8_and_what_goes_wrong_with_one_stops_no_other(exported, tmp_path, capfd):
    broken = tmp_path / "broken"
    shutil.copytree(exported / "news", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "1").touch()  # no folder can be made there
    models = {"broken": broken, "blocked": exported / "squad", "last": exported / "similarity"}
    compared = Comparison(models, scratch)
    compared.load()
    told = capfd.readouterr().err
    assert "error: " in told and "Traceback" not in told
    assert not compared.doing and list(compared.models[1].predictors) == ["fp32"]
    assert "broken/model.safetensors" in compared.error and str(tmp_path) not in compared.error
    assert "; blocked: no int8 form" in compared.error
    sizes = compared.models[2].megabytes
    assert sizes["int8"] < sizes["fp32"]
    assert not list(scratch.rglob(FILES["fp32"]))  # it is as large as the weights
    client = app.create_app(compared).test_client()
    found = client.post("/classify", json=TEXT)
    assert found.status_code == 500 and found.json["error"] == compared.error
    assert "Retry-After" not in found.headers
    assert client.post("/answer", json=QUESTION).status_code == 200
    found = client.post("/answer", json=QUESTION | {"precision": "int8"})
    assert found.status_code == 400 and "Retry-After" not in found.headers


def test_past_the_bounds_requests_are_refused_at_once(exported, monkeypatch):
    monkeypatch.setattr(comparison, "PATIENCE", 0.05)
    compared = Comparison({"news": exported / "news"}, Path())
    compared._load(compared.models[0])
    client = app.create_app(compared).test_client()
    with compared._turn:
        late = client.post("/classify", json=TEXT)
    assert late.status_code == 503 and "no turn" in late.json["error"]
    for _ in range(comparison.WAITING):
        compared._places.acquire()
    full = client.post("/classify", json=TEXT)
    assert full.status_code == 429 and full.headers["Retry-After"] == "1"
    for _ in range(comparison.WAITING):
        compared._places.release()
    assert client.post("/classify", json=TEXT).status_code == 200


def test_the_description_is_whole_and_the_page_allows_no_inline_script(exported):
    client = client_of(exported / "news")
    described = client.get("/openapi.json").json
    assert set(described["paths"]) == {"/answer", "/classify", "/state"}
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert set(names) <= set(described["components"]["schemas"])
    check("State", client.get("/state").json)
    for path in ("/", "/static/page.css", "/static/page.js", "/static/icon.svg"):
        found = client.get(path)
        assert found.status_code == 200
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    page = client.get("/").text
    assert not re.search(r"<script>|<style| style=| on\w+=|https?://", page)
