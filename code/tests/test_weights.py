"""Checkpoints in and out, cut students, and damaged files."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from distilbert_kit.errors import UserError
from distilbert_kit.files import MARK, check_sha256
from distilbert_kit.models import model as kit
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.config import ModelConfig, create_model_config
from distilbert_kit.models.initialisation import choose_layers, extract_student
from distilbert_kit.models.packaged import KNOWN_SHA256
from distilbert_kit.models.tokenizers import get_tokenizer


def tiny_teacher() -> kit.DistilBERTForMaskedLM:
    config = ModelConfig("bert", 50, 16, 12, 6, 3, 20, type_vocab_size=2)
    teacher = kit.DistilBERTForMaskedLM(config)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter)
    return teacher


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("released", [0, 2, 4, 7, 9, 11]),
        ("even", [0, 2, 4, 6, 8, 10]),
        ("first", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layer_strategies(strategy, expected):
    assert choose_layers(strategy, 12, 6) == expected


def test_layer_strategies_of_other_depths():
    assert choose_layers("last", 6, 2) == [4, 5]
    assert choose_layers("even", 6, 3) == [0, 2, 4]
    drawn = choose_layers("random", 12, 5, seed=3)
    assert drawn == sorted(set(drawn)) == choose_layers("random", 12, 5, seed=3)
    assert choose_layers("0,2,4", 6) == choose_layers("0,2,4", 6, 3) == [0, 2, 4]
    wrong_ones = (("released", 6, 3), ("even", 6, 7), ("middle", 6, 3), ("0,2,4", 6, 2))
    for wrong in (*wrong_ones, ("0,two", 6), ("3", 6, 2), ("0", 6), ("7", 6), ("6,", 6), (",", 6)):
        with pytest.raises(UserError):
            choose_layers(*wrong)


def test_a_number_is_a_count_and_with_a_comma_a_layer():
    assert choose_layers("6", 12) == choose_layers("6", 12, 6) == [0, 2, 4, 6, 8, 10]
    assert choose_layers("6,", 12) == choose_layers("6,", 12, 1) == [6]
    assert choose_layers("1", 12) == [0]


def test_student_copies_what_it_says():
    teacher, layers = tiny_teacher(), [5, 0, 3]
    student = extract_student(teacher, layers)
    assert student.config.num_layers == 3 and student.config.model_type == "distilbert"
    embeddings = teacher.encoder.embeddings
    for name in (
        "word_embeddings.weight",
        "position_embeddings.weight",
        "norm.weight",
        "norm.bias",
    ):
        assert torch.equal(
            student.encoder.embeddings.get_parameter(name), embeddings.get_parameter(name)
        )
    for block, layer in zip(student.encoder.blocks, layers, strict=True):
        for name, parameter in block.named_parameters():
            assert torch.equal(parameter, teacher.encoder.blocks[layer].get_parameter(name)), name
    for name in ("transform.weight", "transform.bias", "transform_norm.weight", "decoder_bias"):
        assert torch.equal(student.get_parameter(name), teacher.get_parameter(name))
    assert not hasattr(student.encoder, "pooler")
    assert student.encoder.blocks[0].attention.qkv.weight is not (
        teacher.encoder.blocks[5].attention.qkv.weight
    )
    without = extract_student(teacher, layers, vocabulary_transform=False)
    assert not torch.equal(without.transform.weight, teacher.transform.weight)
    assert torch.equal(without.decoder_bias, teacher.decoder_bias)


def test_whole_depth_student_computes_as_the_teacher():
    """With every layer and the first token type folded in, nothing is lost."""
    teacher = tiny_teacher().eval()
    student = extract_student(teacher, list(range(6))).eval()
    with torch.no_grad():
        types = teacher.encoder.embeddings.token_type_embeddings.weight
        student.encoder.embeddings.position_embeddings.weight += types[0]
    ids = torch.randint(1, 50, (3, 9))
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_student_is_what_its_config_can_say():
    """DistilBERT's config.json has no epsilon of its norms: it is 1e-12 after every reading."""
    teacher = tiny_teacher()
    teacher.config = dataclasses.replace(teacher.config, layer_norm_eps=1e-5)
    student = extract_student(teacher, [0, 1])
    assert student.encoder.embeddings.norm.eps == student.config.layer_norm_eps == 1e-12


def test_missing_layer_is_named():
    with pytest.raises(UserError, match="layer 6 does not exist: choose from 0 to 5"):
        extract_student(tiny_teacher(), [0, 6])


def test_round_trip_keeps_every_bit(tmp_path):
    model = kit.DistilBERTForSequenceClassification(
        create_model_config("tiny"), num_labels=3, labels=("a", "b", "c")
    )
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    again = kit.DistilBERTForSequenceClassification.from_pretrained(tmp_path / "m")
    assert again.labels == ("a", "b", "c") and again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert (
        get_tokenizer(tmp_path / "m")("a test")["input_ids"]
        == get_tokenizer()("a test")["input_ids"]
    )


def test_labels_tell_how_many_classes_there_are(tmp_path):
    read = kit.DistilBERTForSequenceClassification.from_pretrained
    three = ("a", "b", "c")
    model = kit.DistilBERTForSequenceClassification(create_model_config("tiny"), labels=three)
    assert model.num_labels == len(model.classifier.weight) == 3
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    assert read(tmp_path / "m", labels=("x", "y", "z", "w")).num_labels == 4
    found = read(tmp_path / "m", multi_label=True)
    assert found.labels == three and found.multi_label
    with pytest.raises(UserError, match="2 classes but 3 labels"):
        read(tmp_path / "m", num_labels=2, labels=three)


def test_old_layer_norm_names_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    model = kit.DistilBERTModel(ModelConfig("bert", 30, 16, 12, 2, 3, 20, type_vocab_size=2))
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in load_file(path).items()
    }
    save_file(old, path)
    (tmp_path / "m" / MARK).unlink()  # a folder of somebody else's
    again = kit.DistilBERTModel.from_pretrained(tmp_path / "m")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_weights_may_be_read_by_whom_their_config_may(tmp_path):
    before = os.umask(0o027)
    try:
        kit.DistilBERTModel(create_model_config("tiny", vocab_size=40)).save_pretrained(
            tmp_path / "m"
        )
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()}
    assert modes == {0o640}


def test_a_class_made_from_the_bare_encoder_reads_its_weights(tmp_path):
    class Named(kit.DistilBERTModel):
        pass

    model = kit.DistilBERTModel(create_model_config("tiny", vocab_size=40))
    model.save_pretrained(tmp_path / "m")
    again = Named.from_pretrained(tmp_path / "m")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_padding_token_beyond_the_vocabulary_is_told_its_bounds():
    with pytest.raises(UserError, match=r"pad_token_id 1000 .*; give one from 0 to 999"):
        ModelConfig(vocab_size=1000, pad_token_id=1000)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ({"type_vocab_size": 2}, "type_vocab_size: distilbert has no token types"),
        ({"model_type": "mpnet", "type_vocab_size": 2}, "type_vocab_size: mpnet has no token"),
        ({"layer_norm_eps": 1e-5}, r"layer_norm_eps 1e-05: distilbert's is 1e-12"),
    ],
)
def test_what_a_config_json_cannot_say_is_refused(lost, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**lost)


def full_disk(*_, **__):
    """A library that fetches, as it ends on a full disk: a real refusal, in an error of its own."""
    try:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")
    except OSError as error:
        raise RuntimeError("it could not be fetched") from error


def test_a_full_disk_is_not_taken_for_a_wrong_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        resolve_checkpoint("somebody/some-model")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        kit.DistilBERTForMaskedLM(create_model_config("tiny", vocab_size=40)).save_pretrained(
            tmp_path / "m"
        )
        return tmp_path / "m"

    def read(self, folder, head="ForMaskedLM", **arguments):
        return getattr(kit, f"DistilBERT{head}").from_pretrained(folder, **arguments)

    def test_cut_short(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match="not a readable safetensors"):
            self.read(folder)

    def test_corrupted_header(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
        with pytest.raises(UserError, match="not a readable safetensors"):
            self.read(folder)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match="no such weights"):
            self.read(folder)

    def test_other_shape(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 64}))
        with pytest.raises(UserError, match="has shape"):
            self.read(folder)

    def test_other_architecture(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
        with pytest.raises(UserError, match="is none of distilbert, bert, mpnet"):
            self.read(folder)
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
        with pytest.raises(UserError, match="missing"):
            self.read(folder)

    def test_config_not_json(self, folder):
        (folder / "config.json").write_text("{")
        with pytest.raises(UserError, match="not JSON"):
            self.read(folder)

    def test_untrained_head_refused_when_required(self, folder):
        self.read(folder, "ForSequenceClassification", num_labels=2)
        with pytest.raises(UserError, match="not a trained"):
            self.read(folder, "ForSequenceClassification", num_labels=2, require_head=True)

    def test_wrong_sha256(self, folder):
        with pytest.raises(UserError, match="SHA-256"):
            check_sha256(folder / "model.safetensors", KNOWN_SHA256["minilm"])

    def test_no_folder_no_network(self, folder, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="neither a folder nor fetched"):
            resolve_checkpoint("nobody/no-such-model")
        with pytest.raises(UserError, match="no such checkpoint folder"):
            resolve_checkpoint(folder / "not" / "there")

    def test_full_disk_keeps_the_old_folder(self, folder):
        """A real refusal by the system: no file may grow beyond 100 kB."""
        before = (folder / "model.safetensors").read_bytes()
        program = (
            "import resource, sys\n"
            "from distilbert_kit.script import entry_point\n"
            "from distilbert_kit.models import config, model\n"
            "def main():\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "    shape = config.create_model_config('tiny')\n"
            "    model.DistilBERTModel(shape).save_pretrained(sys.argv[1])\n"
            "entry_point(main)()\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True
        )
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("error: File too large")
        assert len(result.stderr.splitlines()) == 1
        assert (folder / "model.safetensors").read_bytes() == before
        assert [path.name for path in folder.parent.iterdir()] == ["m"]
