"""A masked-LM head trained on a frozen body: the body stays as published, byte for byte."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import extract_student
from distilbert_kit.errors import UserError
from distilbert_kit.files import MARK
from distilbert_kit.models.checkpoints import has_masked_lm_head
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.study.measure import head_training_flops, training_flops
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.specs import Pretrain

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_layers": 2}


def publish(folder, preset):
    """Weights without a head, as sentence encoders are published."""
    model = DistilBERTForMaskedLM(create_model_config(preset, **SMALL))
    model.save_pretrained(folder, get_tokenizer(preset))
    tensors = load_file(folder / "model.safetensors")
    body = {n: t for n, t in tensors.items() if not n.startswith(("cls.", "lm_head."))}
    save_file(body, folder / "model.safetensors", {"format": "pt"})
    (folder / MARK).unlink()  # no longer as the kit wrote it


@pytest.fixture
def recipe(tmp_path, request):
    preset = request.param
    publish(tmp_path / "published", preset)
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    training = {"epochs": 5, "learning_rate": 1e-2, "batch_size": 8, "precision": "fp32"}
    rows = [" ".join(f"the mill of town {i} was number {k}" for k in range(4)) for i in range(40)]
    (tmp_path / "dump.txt").write_text("\n".join(rows))
    content |= {
        "name": "frozen",
        "corpus": {"source": [f"lines:{tmp_path / 'dump.txt'}"], "validation_fraction": 0.2},
        "pretrain": training,
        "distill": training,
        "demo": [],
        "models": {
            "published": {"label": "p", "weights": str(tmp_path / "published")},
            "teacher": {"label": "t", "pretrain": {"start": "published", "train": "head"}},
            "again": {"label": "a", "pretrain": {"start": "teacher", "train": "head"}},
        },
        "teacher": "teacher",
        "student": "teacher",
    }
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "frozen.yaml"


PROGRAM = """
import json, runpy, sys
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""


@pytest.mark.parametrize("recipe", ["mpnet-base"], indirect=True)
def test_only_the_head_changes(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    calls = [("prepare_corpus.py",)]
    calls += [("pretrain.py", "--model", name) for name in ("teacher", "again")]
    commands = [[str(CODE / name), "--recipe", str(recipe), *rest] for name, *rest in calls]
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == [0, 0, 2], ended.stderr[-2000:]
    assert "teacher has a masked-LM head already" in ended.stderr.splitlines()[-1]
    results = tmp_path / "results/frozen"
    before = load_file(tmp_path / "published/model.safetensors")
    after = load_file(results / "models/teacher/model.safetensors")
    assert before.keys() < after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    record = json.loads((results / "pretrain/teacher.json").read_text())
    losses = record["metrics"]["validation"]
    assert losses["after"]["mlm"] < losses["before"]["mlm"] - 0.05
    assert record["settings"]["train"] == "head"
    assert not (results / "models/again").exists()


def test_frozen_body_drops_nothing_out_and_gets_no_gradient():
    model = DistilBERTForMaskedLM(create_model_config("mpnet-base", **SMALL))
    model.freeze_body()
    ids = torch.randint(4, 30000, (2, 9))
    first, second = (model.train().encoder.last_hidden_state(ids) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert model.transform.training
    model(ids, labels=ids).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {
        f"{layer}.{kind}"
        for layer in ("transform", "transform_norm")
        for kind in ("weight", "bias")
    } | {"decoder_bias"}


def test_head_training_costs_less_than_training_all():
    shape = create_model_config("mpnet-base")
    alone, whole = head_training_flops(shape, [128], 20), training_flops(shape, [128], 20)
    body = 12 * (24 * 768**2 * 128 + 4 * 128**2 * 768)  # one forward pass through the blocks
    head = 2 * 20 * 768 * (768 + 30527)
    assert whole == 3 * (body + head)
    assert alone == body + 2 * head + 2 * 20 * 768**2


def test_recipe_key(tmp_path):
    with pytest.raises(ValueError, match="needs a start"):
        Pretrain(shape="bert-tiny", train="head")
    assert Pretrain(start="a").model_dump(mode="json") == {"start": "a", "shape": None}
    text = (RECIPES / "quick.yaml").read_text()
    (tmp_path / "r.yaml").write_text(
        text.replace("{start: minilm}", "{start: minilm, train: heads}")
    )
    with pytest.raises(UserError, match=r"models\.teacher\.pretrain\.train"):
        load_recipe(tmp_path / "r.yaml")
    assert not has_masked_lm_head("minilm")


def test_a_student_of_a_teacher_without_a_head_is_not_said_to_have_its_head(tmp_path, capsys):
    command = ["extract_student.py", "--teacher", "minilm", "--layers", "0,", "--output"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, str(tmp_path / "student")])
        extract_student.main()
    told = capsys.readouterr().out
    assert "decoder bias" not in told and "random: the masked-LM head" in told
