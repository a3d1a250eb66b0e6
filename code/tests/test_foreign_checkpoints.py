"""Checkpoints that others wrote: read as transformers reads them, or refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rounding import ROUNDING
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.batches import create_classification_dataloader
from distilbert_kit.data.tasks import Task, get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models import model as kit
from distilbert_kit.models.checkpoints import model_sha256
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.serve.export import save_onnx
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.settings import CorpusSettings
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.training.classification import (
    CLASSIFICATION,
    evaluate_classification_metrics,
)
from distilbert_kit.training.distillation import open_corpus
from distilbert_kit.training.fine_tuning import fine_tuned, teacher_logits, with_new_head

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "a fine dull film plot the is and so good bad goal team bank price was built mill in by"
WORDS = [*SPECIAL, *TEXT.split()]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
BERT = {"vocab_size": len(WORDS), "num_attention_heads": 4, **SIZES}
DISTILBERT = {"vocab_size": len(WORDS), "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
LABELS = {0: "bad", 1: "good", 2: "so-so"}
THREE = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
SENTIMENT = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
TEXTS = ["a fine film", "the plot is dull and so bad", "the mill was built by the team"]


def put(model, folder, tokenizer_class="BertTokenizer", words=WORDS):
    """Save a model of transformers with random weights and a tokenizer as its Trainer does."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"do_lower_case": True, "tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def classifier(folder, **config):
    return put(BertForSequenceClassification(BertConfig(**BERT | THREE | config)), folder)


def theirs(folder, texts=TEXTS):
    """Probabilities [N, C] as transformers has them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(*t, return_tensors="pt")).logits for t in texts])
    multi = model.config.problem_type == "multi_label_classification"
    return logits.sigmoid() if multi else logits.softmax(-1)


def ours(folder, texts=TEXTS):
    rows = load_predictor(folder)(texts)
    return torch.tensor([list(row["probabilities"].values()) for row in rows])


def single(texts=TEXTS):
    return [(text,) for text in texts]


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]
)
def test_activations_are_those_of_the_config(tmp_path, activation):
    folder = classifier(tmp_path / "m", hidden_act=activation)
    torch.testing.assert_close(ours(folder), theirs(folder, single()), atol=1e-5, rtol=0)
    model = kit.DistilBERTForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", get_tokenizer(folder))
    torch.testing.assert_close(theirs(tmp_path / "again", single()), theirs(folder, single()))
    small = DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, activation="relu"))
    small = put(small, tmp_path / "small")
    torch.testing.assert_close(ours(small), theirs(small, single()), atol=1e-5, rtol=0)


def test_masked_lm_has_the_activation_in_its_head_too(tmp_path):
    folder = put(BertForMaskedLM(BertConfig(**BERT, hidden_act="relu")), tmp_path / "m")
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    model = kit.DistilBERTForMaskedLM.from_pretrained(folder, require_head=True)
    expected = AutoModelForMaskedLM.from_pretrained(folder).eval()(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize(
    "asked",
    [
        {"hidden_act": "mish"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"auto_map": {"AutoModel": "own.Model"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"problem_type": "regression"},
        {"num_hidden_layers": "two"},
        {"model_type": "electra"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_config_asks_and_is_not_done_is_refused_in_one_line(tmp_path, asked):
    folder = classifier(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | asked))
    for read in (kit.DistilBERTModel.from_pretrained, get_tokenizer):
        with pytest.raises(UserError, match=r"config\.json") as refused:
            read(folder)
        assert "\n" not in str(refused.value)


def test_multi_label_probabilities_are_sigmoids(tmp_path):
    folder = classifier(tmp_path / "m", problem_type="multi_label_classification")
    torch.testing.assert_close(ours(folder), theirs(folder, single()), atol=1e-5, rtol=0)
    for row in load_predictor(folder)(TEXTS):
        held = [name for name, share in row["probabilities"].items() if share > 0.5]
        assert row["labels"] == held and row["probability"] == max(row["probabilities"].values())
    model = kit.DistilBERTForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", get_tokenizer(folder))
    save_onnx(model, tmp_path / "graphs", get_tokenizer(folder))
    torch.testing.assert_close(ours(tmp_path / "again"), ours(folder))
    assert all("labels" in row for row in load_predictor(tmp_path / "graphs")(TEXTS))
    batch = get_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = reference(**batch, labels=labels.float()).loss
    torch.testing.assert_close(model.eval()(**batch, labels=labels).loss, expected)
    loader = create_classification_dataloader(TEXTS, [0, 1, 2], get_tokenizer(folder))
    with pytest.raises(UserError, match="give a single-label model"):
        evaluate_classification_metrics(model, loader)
    with pytest.raises(UserError, match="give a single-label model"):
        CLASSIFICATION.loss(model, next(iter(loader)), {"loss": 1.0})
    with pytest.raises(UserError, match=r"multi-label .*; give a single-label checkpoint"):
        fine_tuned(folder, get_task("mnli"))


def test_classifier_without_pooler_weights_is_refused(tmp_path, capsys):
    folder = classifier(tmp_path / "m")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "pooler" not in n}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"pooler\.\w+ and 1 more missing"):
        load_predictor(folder)
    with_new_head(folder, get_task("mnli"))
    assert "no pooler in the weights; a new one is drawn" in capsys.readouterr().err


def test_a_head_for_multiple_choice_is_no_regression(tmp_path):
    """Its one output has the layers and names of a trained head for scores."""
    folder = put(BertForMultipleChoice(BertConfig(**BERT, num_labels=1)), tmp_path / "m")
    with pytest.raises(UserError, match="a BertForMultipleChoice, no classifier of texts"):
        fine_tuned(folder, get_task("stsb"))
    with_new_head(folder, get_task("stsb"))


def test_a_pooler_that_is_not_there_is_not_made_up(tmp_path):
    folder = put(BertModel(BertConfig(**BERT), add_pooling_layer=False), tmp_path / "m")
    ids = torch.tensor([[2, 5, 6, 3]])
    for head in ("Model", "ForMaskedLM", "ForQuestionAnswering"):
        model = getattr(kit, f"DistilBERT{head}").from_pretrained(folder)
        model.save_pretrained(tmp_path / "again")
        assert not [n for n in load_file(tmp_path / "again/model.safetensors") if "pooler" in n]
    assert kit.DistilBERTModel.from_pretrained(folder)(ids).pooler_output is None


def test_untied_decoders_are_refused(tmp_path):
    untied = put(BertForMaskedLM(BertConfig(**BERT, tie_word_embeddings=False)), tmp_path / "m")
    with pytest.raises(UserError, match="decoder is not tied"):
        kit.DistilBERTForMaskedLM.from_pretrained(untied, require_head=True)
    # The weights decide, whatever the configuration says.
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match="decoder is not tied"):
        kit.DistilBERTForMaskedLM.from_pretrained(untied)
    kit.DistilBERTForSequenceClassification.from_pretrained(untied)  # reads no decoder


class TestFormats:
    @pytest.fixture
    def folder(self, tmp_path):
        return classifier(tmp_path / "m")

    def test_shards_are_read_by_their_index(self, folder):
        expected = ours(folder)
        (folder / "model.safetensors").unlink()
        model = BertForSequenceClassification(BertConfig(**BERT | THREE))
        put(model, folder)
        expected, whole = ours(folder), model_sha256(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        assert torch.equal(ours(folder), expected) and model_sha256(folder) != whole
        shards[0].unlink()
        with pytest.raises(UserError, match=rf"{shards[0].name}: missing"):
            load_predictor(folder)
        index = folder / "model.safetensors.index.json"
        for wrong in ("{", "[]", '{"weight_map": 1}'):
            index.write_text(wrong)
            with pytest.raises(UserError, match=r"not an index|not JSON|not a JSON object"):
                load_predictor(folder)
        index.write_text('{"weight_map": {"a": "../m/config.json"}}')
        with pytest.raises(UserError, match="missing"):
            load_predictor(folder)

    def test_pickled_tensors_are_read_and_no_code_is_run(self, folder, tmp_path):
        expected = ours(folder)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        assert torch.equal(ours(folder), expected)

        class Harm:
            def __reduce__(self):
                return (open, (str(tmp_path / "harm"), "w"))

        torch.save(tensors | {"x": Harm()}, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="save it as safetensors"):
            load_predictor(folder)
        assert not (tmp_path / "harm").exists()

    def test_recipe_file_may_end_in_yml(self, tmp_path):
        text = (RECIPES / "quick.yaml").read_text().replace("name: quick", "name: mine")
        (tmp_path / "recipe.yml").write_text(text)
        recipe = load_recipe(tmp_path / "recipe.yml")
        assert recipe.name == "mine" and recipe.argument == str(tmp_path / "recipe.yml")


def test_start_of_other_labels_gets_a_new_head_and_says_so(tmp_path, capsys):
    folder = classifier(tmp_path / "m")
    old = kit.DistilBERTForSequenceClassification.from_pretrained(folder)
    capsys.readouterr()
    for task in ("sst2", "mnli", "stsb"):  # two labels, three of other names, one number
        model = with_new_head(folder, get_task(task))
        said = capsys.readouterr().err
        assert "its head is for bad, good, so-so" in said and said.count("\n") == 1
        assert model.num_labels == get_task(task).num_labels
        assert not torch.equal(model.classifier.weight[0], old.classifier.weight[0])
        assert torch.equal(model.encoder.pooler.weight, old.encoder.pooler.weight)
    with pytest.raises(UserError, match="has 3 labels"):
        fine_tuned(folder, get_task("sst2"))
    # A head for the same labels goes on.
    same = put(BertForSequenceClassification(BertConfig(**BERT | SENTIMENT)), tmp_path / "s")
    capsys.readouterr()
    model = with_new_head(same, get_task("sst2"))
    weight = load_file(same / "model.safetensors")["classifier.weight"]
    assert torch.equal(model.classifier.weight, weight) and not capsys.readouterr().err


class TestTokenizers:
    """The tokenizer of a model is its own."""

    def test_one_of_a_folder_called_as_a_known_model(self, tmp_path, monkeypatch):
        model = BertForSequenceClassification(BertConfig(**BERT | SENTIMENT))
        monkeypatch.chdir(tmp_path)
        for name in ("bert-base-uncased", "bert-base-uncased@mine"):
            put(model, tmp_path / name)
            for given in (name, Path(name)):
                assert len(get_tokenizer(given)) == len(WORDS)
        monkeypatch.chdir("/")
        assert len(get_tokenizer("bert-base-uncased")) == 30522

    @pytest.mark.parametrize("kind", ["distilbert", "bert"])
    def test_one_that_gives_no_token_types(self, tmp_path, kind):
        if kind == "bert":
            model = BertForSequenceClassification(BertConfig(**BERT | SENTIMENT))
        else:
            model = DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT | SENTIMENT))
        folder = put(model, tmp_path / "m", "DistilBertTokenizer")
        assert "token_type_ids" not in get_tokenizer(folder).model_input_names
        pairs = [("a fine film", "the plot is dull"), ("good", "bad bad bad")]
        for texts, given in ((TEXTS, single()), (pairs, pairs)):
            torch.testing.assert_close(ours(folder, texts), theirs(folder, given))
        read = kit.DistilBERTForSequenceClassification.from_pretrained(folder)
        save_onnx(read, tmp_path / "graphs", get_tokenizer(folder))
        rows = load_predictor(tmp_path / "graphs")(pairs)
        assert [row["text"] for row in rows] == pairs

    def test_windows_for_one_that_gives_no_token_types(self, tmp_path):
        model = kit.DistilBERTForQuestionAnswering(
            kit.ModelConfig("bert", len(WORDS), 512, 32, 2, 4, 64, type_vocab_size=2)
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        folder = tmp_path / "m"
        model.save_pretrained(folder)
        for name in ("tokenizer_config.json", "vocab.txt"):
            source = put(BertModel(BertConfig(**BERT)), tmp_path / "t", "DistilBertTokenizer")
            (folder / name).write_text((source / name).read_text())
        (row,) = load_predictor(folder)(["was a mill built"], ["the mill was built by a team"], 40)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("was a mill built", "the mill was built by a team", return_tensors="pt")
        assert "token_type_ids" not in batch
        output = model.eval()(**batch)
        context = slice(6, -1)
        sums = output.start_logits[0, context, None] + output.end_logits[0, None, context]
        sums = sums.detach()
        best = float(sums.triu().masked_fill(sums.triu() == 0, -1e9).max())
        assert row["answers"][0]["score"] == pytest.approx(best, rel=ROUNDING, abs=ROUNDING)

    def test_more_tokens_than_embeddings(self, tmp_path):
        folder = classifier(tmp_path / "m")
        tokenizer = get_tokenizer(folder)
        tokenizer.add_tokens(["goalkeeper"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(UserError, match="tokenizer has 26 tokens, its model 25 embeddings"):
            load_predictor(folder)

    def test_damaged_or_unfit(self, tmp_path):
        folder = classifier(tmp_path / "m")
        get_tokenizer(folder).save_pretrained(folder)
        (folder / "tokenizer.json").write_text('{"model": 1}')
        with pytest.raises(UserError, match="tokenizer is not readable"):
            get_tokenizer(folder)

    def test_teacher_of_another_vocabulary_of_the_same_size(self, tmp_path):
        folder = classifier(tmp_path / "m")
        swapped = [*WORDS[:5], *reversed(WORDS[5:])]
        other = put(BertForSequenceClassification(BertConfig(**BERT | THREE)), tmp_path / "o")
        (other / "vocab.txt").write_text("\n".join(swapped) + "\n")
        task = Task("t", "t", ("text",), ("bad", "good", "so_so"), ("accuracy",))
        with pytest.raises(UserError, match="use models of one vocabulary"):
            teacher_logits(other, task, [], get_tokenizer(folder), "fp32")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose teacher has a vocabulary of its own, with its corpus prepared."""
    folder = tmp_path_factory.mktemp("own vocabulary")
    put(BertForMaskedLM(BertConfig(**BERT)), folder / "teacher")
    swapped = [*WORDS[:5], *reversed(WORDS[5:])]
    put(BertForMaskedLM(BertConfig(**BERT)), folder / "other", words=swapped)
    lines = [" ".join(WORDS[5 + (i + k) % 20] for k in range(i % 7 + 12)) for i in range(80)]
    (folder / "dump.txt").write_text("\n".join(lines))
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    training = {"epochs": 0.1, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32"}
    content |= {
        "name": "own",
        "corpus": {"source": [f"lines:{folder / 'dump.txt'}"], "validation_fraction": 0.2},
        "pretrain": training,
        "distill": training,
        "finetune": content["finetune"] | {"epochs": 0.02, "max_length": 32, "precision": "fp32"},
        "demo": [],
        "models": {
            "teacher": {"label": "t", "weights": str(folder / "teacher")},
            "other": {"label": "o", "weights": str(folder / "other")},
            "cut": {"label": "c", "extract": {"teacher": "teacher", "layers": [0]}},
            "distilled": {"label": "d", "distill": {"teacher": "teacher", "student": "cut"}},
            "mixed": {"label": "m", "distill": {"teacher": "other", "student": "cut"}},
        },
        "teacher": "teacher",
        "student": "distilled",
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return folder / "own.yaml"


PROGRAM = """
import contextlib, io, json, runpy, sys
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, errors = arguments, io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    results.append([code, errors.getvalue().splitlines()[-1:]])
print(json.dumps(results))
"""


def test_stages_of_a_recipe_use_the_tokenizer_of_its_weights(recipe, monkeypatch):
    """One process runs all scripts: corpus, cut, distillation, fine-tuning; strangers refused."""
    folder = recipe.parent
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))
    calls = [
        ("prepare_corpus.py",),
        ("extract_student.py", "--model", "cut"),
        ("distill.py", "--model", "distilled"),
        ("finetune.py", "--model", "distilled", "--task", "sentiment", "--save"),
        ("finetune.py", "--model", "other", "--task", "sentiment", "--save"),
        ("distill.py", "--model", "mixed"),
        (
            "distill.py",
            "--model",
            "distilled",
            "--teacher",
            str(folder / "other"),
            "--layers",
            "0,",
        ),
    ]
    commands = [[str(CODE / name), "--recipe", str(recipe), *rest] for name, *rest in calls]
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    ended = subprocess.run(program, capture_output=True, text=True)
    results = json.loads(ended.stdout.splitlines()[-1])
    assert [code for code, _ in results] == [0, 0, 0, 0, 0, 2, 2], results
    assert "use models of one vocabulary" in results[5][1][0]
    assert "made with the vocabulary of" in results[6][1][0]
    models = folder / "results/own/models"
    vocabulary = get_tokenizer(folder / "teacher").get_vocab()
    for name in ("cut", "distilled", "distilled-sentiment-0"):
        assert get_tokenizer(models / name).get_vocab() == vocabulary
    own = get_tokenizer(folder / "other").get_vocab()
    assert get_tokenizer(models / "other-sentiment-0").get_vocab() == own != vocabulary
    assert not (models / "mixed").exists()


def test_corpus_of_another_vocabulary_is_refused(tmp_path, recipe):
    prepare_corpus(
        tmp_path / "corpus",
        [open_source(f"lines:{recipe.parent / 'dump.txt'}")],
        get_tokenizer(recipe.parent / "teacher"),
        validation_fraction=0.2,
    )
    settings, read = CorpusSettings(source=["docs"]), get_tokenizer
    open_corpus(tmp_path / "corpus", "train", settings, read(recipe.parent / "teacher"))
    with pytest.raises(UserError, match="made with the vocabulary of teacher"):
        open_corpus(tmp_path / "corpus", "train", settings, read(recipe.parent / "other"))
