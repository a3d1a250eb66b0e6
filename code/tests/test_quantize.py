"""The stage that makes graphs: its cell, what it refuses, and the cards of its models."""

import json
import os
import re

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from scipy.special import softmax

import quantize
from distilbert_kit.errors import UserError
from distilbert_kit.files import check_output_folder
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForQuestionAnswering
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES
from distilbert_kit.serve.export import OUTPUTS, OnnxModel, save_onnx
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.settings import WindowSettings
from distilbert_kit.study import cells as experiment, recipes
from distilbert_kit.study.cells import quantize_cell
from distilbert_kit.study.model_card import model_card, write_model_card
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record, recording
from distilbert_kit.training.question_answering import QuestionAnsweringDataset, predict_spans


@pytest.fixture
def recipe(tmp_path, monkeypatch, saved):
    """A recipe whose fine-tuned model is the small BERT, kept under results."""
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content |= {"name": "tiny", "quantize": [{"models": ["teacher"], "task": "sentiment"}]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    recipe = load_recipe(tmp_path / "tiny.yaml")
    cell = experiment.finetune_cell(recipe, "teacher", "sentiment", 0)
    with recording(cell.record, **cell.provenance):
        saved[0].save_pretrained(cell.folder, get_tokenizer())
    cell.stamp_folder()
    return recipe


def test_quantised_cell_has_record_card_and_a_parent_that_is_kept(recipe, monkeypatch, capsys):
    cells = {(c.stage, c.name): c for c in experiment.evidence_cells(recipe)}
    cell = cells["quantize", "teacher-sentiment-0-int8"]
    assert cells["finetune", "teacher-sentiment-0"].command[-1] == "--save"
    assert "--save" not in cells["finetune", "undistilled-sentiment-0"].command
    assert set(map(str, cell.command[4:])) >= {"--model", "teacher", "--seed", "0"}
    command = ["--recipe", recipe.argument, "--model", "teacher", "--task", "sentiment"]
    monkeypatch.setattr("sys.argv", ["quantize.py", *command])
    quantize.main()
    record = read_record(cell.record)
    assert cell.is_recorded() and cell.has_folder()
    assert {"torch_fp32", "onnx_fp32", "onnx_int8"} == set(record.metrics["validation"])
    assert "latency" not in record.measured.extra  # beside other jobs no time is worth recording
    assert "onnx_int8" in capsys.readouterr().out
    card = ModelCard.load(cell.folder / "README.md")
    assert card.data.base_model == ["sentence-transformers/all-MiniLM-L6-v2"]
    other = ModelCard(model_card(cell.folder, record, ["all-mpnet-base-v2"]))
    assert other.data.base_model == ["sentence-transformers/all-mpnet-base-v2"]
    write_model_card(cell.folder, record, [])
    check_output_folder(cell.folder)  # the card is the kit's, as the rest
    values = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert values["accuracy"] == record.metrics["validation"]["onnx_int8"]["accuracy"]
    assert card.data.datasets is None and "embedded scale" in card.text
    fetched = record.data[0].model_copy(update={"name": "glue/sst2/validation"})
    of_glue = ModelCard(model_card(cell.folder, record.model_copy(update={"data": [fetched]}), []))
    assert of_glue.data.datasets == ["nyu-mll/glue"]
    assert record.data[0].sha256 in card.text


def test_quantising_without_weights_names_the_command(recipe, monkeypatch, capsys):
    cell = quantize_cell(recipe, "undistilled", "sentiment", 3)
    command = ["--recipe", recipe.argument, "--model", "undistilled", "--task", "sentiment"]
    monkeypatch.setattr("sys.argv", ["quantize.py", *command, "--seed", "3"])
    with pytest.raises(SystemExit) as stopped:
        quantize.main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and len(message.splitlines()) == 1
    assert "run python code/finetune.py" in message and "--save" in message
    assert not cell.record.exists()


def test_the_graphs_of_a_checkpoint_and_their_record_are_one_folder(tmp_path, saved, monkeypatch):
    """A run replaces that of the one before; one that fails leaves it as it is."""
    folder = tmp_path / "out"
    command = ["--checkpoint", str(saved[1]), "--output", str(folder), "--task", "sentiment"]
    monkeypatch.setattr("sys.argv", ["quantize.py", *command])
    monkeypatch.setattr(quantize, "latency_by_length", lambda *given: [])
    for _ in range(2):
        quantize.main()
    record = read_record(folder / "record.json")
    assert record.metrics["size"]["onnx_int8"]["bytes"] and load_predictor(folder)(["fine"])
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def broken(*given):
        raise RuntimeError("it broke")

    monkeypatch.setattr(quantize, "score_variants", broken)
    with pytest.raises(RuntimeError):
        quantize.main()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_checkpoint_is_never_replaced_by_its_graphs(saved, monkeypatch, capsys):
    weights = str(saved[1])
    command = ["--checkpoint", weights, "--output", weights, "--task", "sentiment"]
    monkeypatch.setattr("sys.argv", ["quantize.py", *command])
    with pytest.raises(SystemExit):
        quantize.main()
    assert "name a new folder" in capsys.readouterr().err
    assert (saved[1] / "model.safetensors").is_file()


def test_unknown_model_in_the_recipe(tmp_path):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content["quantize"] = [{"models": ["nobody"], "task": "sentiment"}]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="quantize: 'nobody' is not among the models"):
        load_recipe(tmp_path / "bad.yaml")


def test_quantising_answers_is_refused_before_the_training(tmp_path):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {"name": "mine"}
    content |= {"quantize": [{"models": ["teacher"], "task": "squad"}]}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="quantize: 'squad' is no classification or regression"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_checkpoint_of_answers_is_refused(monkeypatch, capsys):
    command = ["--checkpoint", "minilm", "--output", "new", "--task", "squad"]
    monkeypatch.setattr("sys.argv", ["quantize.py", *command])
    with pytest.raises(SystemExit):
        quantize.main()
    told = "--task squad: no classification or regression; give one that is"
    assert told in capsys.readouterr().err


def test_card_is_read_by_the_hub_client(recipe):
    cell = experiment.finetune_cell(recipe, "teacher", "sentiment", 0)
    card = ModelCard.load(cell.folder / "README.md")
    assert card.data.pipeline_tag == "text-classification" and "embedded" in card.data.tags
    assert json.loads((cell.folder / "record.json").read_text())["key"] == cell.key


def run_card(folder, monkeypatch, capsys) -> str:
    """What the snippet of a model card prints, run as it stands in the model's folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    exec(code, {})
    assert ("onnxruntime" in code) == ("ORT_DISABLE_TELEMETRY" in os.environ)
    return capsys.readouterr().out


def test_answers_of_graphs_and_what_the_cards_say_run_as_they_stand(
    tmp_path, recipe, saved, monkeypatch, capsys
):
    """Question answering too: fp32 to rounding, int8 nearly; cards of both heads, both forms."""
    shape = create_model_config(
        "MiniLM-L6", num_layers=1, hidden_size=32, num_heads=4, intermediate_size=64
    )
    model, tokenizer = DistilBERTForQuestionAnswering(shape).eval(), get_tokenizer()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_onnx(model, tmp_path / "graphs", tokenizer)
    questions, contexts = ["Where is Ann?"] * 2, ["Ann is in Paris. " * 40, "Bob knows it."]
    dataset = QuestionAnsweringDataset(questions, contexts, tokenizer, WindowSettings())
    expected = predict_spans(model, dataset)
    exact = predict_spans(OnnxModel(tmp_path / "graphs", "fp32"), dataset)
    np.testing.assert_allclose(exact, expected, atol=1e-4 * expected.std())
    rounded = predict_spans(OnnxModel(tmp_path / "graphs", "int8"), dataset)
    assert 0 < np.abs(rounded - expected).max() < 0.5 * expected.std()
    model.save_pretrained(tmp_path / "weights", tokenizer)
    record = read_record(experiment.finetune_cell(recipe, "teacher", "sentiment", 0).record)
    pair, labels = ("Where is it?", "It is in Paris."), OUTPUTS[model.hub_class]
    with torch.inference_mode():
        output = model(**tokenizer(*pair, return_tensors="pt"))
    for folder, classifies in [
        (tmp_path / "graphs", False), (tmp_path / "weights", False),
        (saved[2], True), (saved[1], True),
    ]:  # fmt: skip
        write_model_card(folder, record, ["minilm"])
        found = run_card(folder, monkeypatch, capsys)
        if classifies:
            (expected,) = load_predictor(folder)(["a fine film"])
            if folder == saved[1]:
                (said,) = eval(found)
                assert said["label"] == expected["label"]
                assert said["score"] == pytest.approx(expected["probability"], abs=1e-4)
            else:
                (logits,) = eval(found, {"array": np.array, "float32": np.float32})
                shares = list(expected["probabilities"].values())
                np.testing.assert_allclose(softmax(logits[0]), shares, atol=1e-4)
        elif folder.name == "graphs":
            logits = eval(found, {"array": np.array, "float32": np.float32})
            assert len(logits) == 2 and logits[0].shape == output.start_logits.shape
            ours = OnnxModel(folder)(**tokenizer(*pair, return_tensors="pt"))
            for given, name in zip(logits, labels, strict=True):
                np.testing.assert_allclose(given, ours[name], atol=1e-5)
        else:
            ids = tokenizer(*pair)["input_ids"]
            first, last = (int(output[name].argmax()) for name in labels)
            assert found.strip() == tokenizer.decode(ids[first : last + 1]).strip()
    (row, _) = load_predictor(tmp_path / "graphs")(questions, contexts)
    assert contexts[0][row["answers"][0]["start"] :].startswith(row["answers"][0]["text"])
