"""Task distillation: the objective, the teacher's logits, the graph, the command line."""

import json
import sys

import numpy as np
import pytest
import scipy
import torch
import torch.nn.functional as F
import transformers
import yaml

import distilbert_kit as kit
import finetune
from distilbert_kit.data.batches import ClassificationDataset, LengthBatchSampler, create_dataloader
from distilbert_kit.data.grammar import build_sentiment
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.files import mark_files
from distilbert_kit.models.checkpoints import read_safetensors, with_hash, write_safetensors
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM, DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES
from distilbert_kit.settings import SoftTargets, TrainSettings
from distilbert_kit.study import recipes
from distilbert_kit.study.cells import cells_to_run, checkpoint, evidence_cells, finetune_cell
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record
from distilbert_kit.training.classification import classification_objective
from distilbert_kit.training.fine_tuning import fine_tuned, teacher_logits
from distilbert_kit.training.loop import train

TOKENIZER = get_tokenizer()
BERT = create_model_config(
    "bert-base-uncased", hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2
)
PAIRS = [("a dog runs", "an animal moves"), ("it rained", "the sun shone all day"), ("one", "two")]
MRPC, SENTIMENT = get_task("mrpc"), get_task("sentiment")


def save_teacher(folder, labels=MRPC.labels, config=BERT):
    teacher = DistilBERTForSequenceClassification(config, len(labels) or 1, labels)
    with torch.no_grad():  # fresh weights are tiny: larger ones make words and types count
        for parameter in teacher.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    teacher.save_pretrained(folder, TOKENIZER)
    return folder


def teach(folder, dataset, task=MRPC, precision="fp32"):
    return teacher_logits(folder, task, dataset, TOKENIZER, precision)


def student(num_labels=2):
    config = create_model_config("tiny", dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0)
    return DistilBERTForSequenceClassification(config, num_labels)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(("temperature", "soft_weight"), [(2.0, 0.5), (5.0, 0.9), (1.0, 0.0)])
def test_loss_and_gradient_equal_the_textbook(num_labels, temperature, soft_weight):
    labels = [0.5, 2.0, 1.0] if num_labels == 1 else [2, 0, 1]
    dataset = ClassificationDataset(PAIRS, labels, TOKENIZER)
    dataset.teacher_logits = 3 * np.random.default_rng(0).normal(size=(3, num_labels))
    dataset.teacher_logits = dataset.teacher_logits.astype(np.float32)
    batch = dataset.collate([dataset[i] for i in (2, 0, 1)])
    model = student(num_labels)
    objective = classification_objective(
        SoftTargets(temperature=temperature, soft_weight=soft_weight)
    )
    counts = {name: float(count) for name, count in objective.counts(batch).items()}
    assert counts == {"loss": 3, "soft": 3}
    total, sums = objective.loss(model, batch, counts)
    total.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    taught = torch.from_numpy(dataset.teacher_logits[[2, 0, 1]])
    if num_labels == 1:
        hard = ((logits[:, 0] - torch.tensor([1.0, 0.5, 2.0])) ** 2).mean()
        soft = ((logits - taught) ** 2).mean()
    else:
        hard = F.cross_entropy(logits, torch.tensor([1, 2, 0]))
        soft = temperature**2 * torch.nn.KLDivLoss(reduction="batchmean")(
            F.log_softmax(logits / temperature, -1), F.softmax(taught / temperature, -1)
        )
    expected = (1 - soft_weight) * hard + soft_weight * soft
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums["soft"] / 3, soft.detach(), rtol=1e-5, atol=1e-6)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_student_is_taught_with_the_public_names_alone():
    texts = [row["sentence"] for row in build_sentiment("train")[:8]]
    loader = kit.create_classification_dataloader(texts, [0, 1] * 4, TOKENIZER, batch_size=4)
    objective = kit.classification_objective(SoftTargets(soft_weight=1.0))
    settings = TrainSettings(epochs=40, learning_rate=3e-3, batch_size=4, precision="fp32")
    torch.manual_seed(0)
    teacher, pupil = student(), student()
    teacher.classifier.weight.data *= 30  # one that is sure of what it says
    with pytest.raises(UserError, match="no teacher: set teacher_logits of the data set"):
        train(pupil, loader, objective, settings, seed=0)
    with pytest.raises(UserError, match="precision 'FP32': use auto, fp32, bf16, fp16"):
        kit.predict_logits(teacher, loader.dataset, precision="FP32")
    loader.dataset.teacher_logits = kit.predict_logits(teacher, loader.dataset)

    def distance():
        logits = (kit.predict_logits(pupil, loader.dataset), loader.dataset.teacher_logits)
        own, taught = (scipy.special.softmax(each, axis=1) for each in logits)
        return np.abs(own - taught).mean()

    before = distance()
    train(pupil, loader, objective, settings, seed=0)
    assert distance() < 0.3 * before


def test_student_follows_the_teacher_where_it_contradicts_the_labels():
    rows = build_sentiment("train")[:24]
    labels = [row["label"] for row in rows]
    dataset = ClassificationDataset([row["sentence"] for row in rows], labels, TOKENIZER)
    dataset.teacher_logits = np.array([[3.0, -3.0] if y else [-3.0, 3.0] for y in labels], "f4")
    settings = TrainSettings(epochs=30, learning_rate=3e-3, batch_size=8, precision="fp32")
    agreed = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = student()
        loader = create_dataloader(dataset, LengthBatchSampler(dataset.lengths, 8))
        train(model, loader, classification_objective(SoftTargets(soft_weight=weight)), settings,
              seed=0)  # fmt: skip
        batch = dataset.collate([dataset[i] for i in range(len(rows))])
        predicted = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1).numpy()
        agreed[weight] = (predicted == dataset.teacher_logits.argmax(1)).mean()
    assert agreed[0.0] < 0.2 and agreed[1.0] > 0.8


def test_teacher_reads_token_types_as_in_transformers(tmp_path):
    folder = save_teacher(tmp_path / "t")
    dataset = ClassificationDataset(PAIRS, [0, 1, 0], TOKENIZER)
    found = teach(folder, dataset)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        batch = TOKENIZER(*map(list, zip(*PAIRS)), padding=True, return_tensors="pt")
        expected = reference(**batch).logits
        batch.pop("token_type_ids")
        without = reference(**batch).logits
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - without.numpy()).max() > 1e-3
    dataset.teacher_logits = found
    delivered = dataset.collate([dataset[2], dataset[0]])["teacher_logits"].numpy()
    np.testing.assert_array_equal(delivered, found[[2, 0]])


def test_logits_are_kept_until_weights_texts_or_precision_change(tmp_path):
    folder = save_teacher(tmp_path / "t")
    dataset = ClassificationDataset(PAIRS, None, TOKENIZER)
    first = teach(folder, dataset)
    (path,) = folder.glob("logits-*.safetensors")
    marked = torch.full(first.shape, 7.0)
    write_safetensors({"logits": marked}, path, **with_hash({"logits": marked}))
    np.testing.assert_array_equal(teach(folder, dataset), marked)  # read, not computed again
    other = ClassificationDataset(PAIRS[::-1], None, TOKENIZER)
    np.testing.assert_allclose(teach(folder, other), first[::-1], atol=1e-5)
    assert np.abs(teach(folder, dataset, precision="bf16") - first).max() < 1
    tensors = read_safetensors(folder / "model.safetensors")
    tensors["classifier.bias"] += 1
    write_safetensors(tensors, folder / "model.safetensors")
    mark_files(folder)
    np.testing.assert_allclose(teach(folder, dataset), first + 1, atol=1e-5)
    assert len(list(folder.glob("logits-*"))) == 4


@pytest.mark.parametrize("damage", ["cut short", "other content"])
def test_damaged_logits_of_a_teacher_are_made_again(tmp_path, damage):
    folder = save_teacher(tmp_path / "t")
    dataset = ClassificationDataset(PAIRS, None, TOKENIZER)
    first = teach(folder, dataset).copy()  # it lies in the file
    (path,) = folder.glob("logits-*.safetensors")
    whole = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(whole[:-1])
    else:  # readable, with the hash of what was there before
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    np.testing.assert_array_equal(teach(folder, dataset), first)
    assert path.read_bytes() == whole


def test_logits_and_teachers_of_other_token_types_are_told_apart(tmp_path):
    """What the student's tokenizer does not give, the teacher of pairs cannot read."""
    folder, untyped = save_teacher(tmp_path / "t"), get_tokenizer()
    untyped.model_input_names = ["input_ids", "attention_mask"]
    dataset = ClassificationDataset(PAIRS, None, untyped)
    with pytest.raises(UserError, match="only one gives token types"):
        teacher_logits(folder, MRPC, dataset, untyped, "fp32")
    single = save_teacher(tmp_path / "s", SENTIMENT.labels)
    teacher_logits(single, SENTIMENT, dataset, untyped, "fp32")  # of one text all are alike
    typed = teach(folder, ClassificationDataset(PAIRS, None, TOKENIZER))
    path = folder / "tokenizer_config.json"
    names = {"model_input_names": untyped.model_input_names}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    found = teacher_logits(folder, MRPC, dataset, untyped, "fp32")
    assert np.abs(found - typed).max() > 1e-3


def test_teacher_with_another_label_order_teaches_in_the_order_of_the_task(tmp_path):
    folder = save_teacher(tmp_path / "t")
    dataset = ClassificationDataset(PAIRS, None, TOKENIZER)
    expected = teach(folder, dataset)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "Equivalent", "1": "Not-equivalent"}
    (folder / "config.json").write_text(json.dumps(config))
    np.testing.assert_allclose(teach(folder, dataset), expected[:, ::-1], atol=1e-6)


def test_what_cannot_teach_is_refused(tmp_path):
    dataset = ClassificationDataset(PAIRS, None, TOKENIZER)
    DistilBERTForMaskedLM(BERT).save_pretrained(tmp_path / "lm")
    save_teacher(tmp_path / "three", ("a", "b", "c"))
    save_teacher(tmp_path / "names", ("negative", "positive"))
    save_teacher(tmp_path / "words", config=create_model_config("tiny", vocab_size=40_000))
    other = get_tokenizer()
    other.add_tokens(["goalkeepership"])
    other.save_pretrained(tmp_path / "words")
    for name, words in {
        "lm": "not a trained DistilBERTForSequenceClassification",
        "three": "its head has 3 labels, mrpc has 2",
        "names": "its labels are negative, positive",
        "words": r"vocabulary \(30,523 tokens\) is not the student's",
        "nowhere": "no such checkpoint folder",
    }.items():
        with pytest.raises(UserError, match=words):
            teach(tmp_path / name, dataset)
    assert not list(tmp_path.glob("*/logits-*"))
    with pytest.raises(UserError, match="not a trained DistilBERTForQuestionAnswering"):
        fine_tuned(tmp_path / "names", get_task("squad"))


@pytest.fixture
def write_recipe(tmp_path, monkeypatch):
    """Writes the quick recipe with tiny models, one of them taught, in place of the real ones."""
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    DistilBERTForMaskedLM(BERT).save_pretrained(tmp_path / "bert", TOKENIZER)

    def write(models=None, **changes):
        content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
        given = {"label": "t", "weights": str(tmp_path / "bert")}
        taught = {"student": "small", "teacher": "teacher"}
        content |= {
            "name": "tiny",
            "seeds": [3, 4],
            "demo": [],
            "models": {
                "teacher": given,
                "small": given | {"label": "s"},
                "taught": {"label": "d", "task_distill": taught},
            }
            | (models or {}),
            "student": "small",
            "finetune": content["finetune"] | {"epochs": 0.02, "precision": "fp32"},
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def names(cells):
    return {f"{cell.stage}/{cell.name}" for cell in cells if cell.stage == "finetune"}


def test_graph_has_one_teacher_for_all_seeds(write_recipe):
    recipe = load_recipe(write_recipe())
    for seed in recipe.seeds:
        cell = finetune_cell(recipe, "taught", "sentiment", seed)
        assert [parent.name for parent in cell.parents] == ["teacher-sentiment-3"]
        assert cell.settings["weights"] == "bert"  # records name no folder of this machine
        assert "--save" not in cell.command
        control = finetune_cell(recipe, "small", "sentiment", seed)
        assert cell.key != control.key and not control.parents
    saved = [c.name for c in evidence_cells(recipe) if "--save" in c.command]
    assert saved == ["teacher-sentiment-3"]
    assert checkpoint(recipe, "taught") == recipe.models["small"].weights
    softer = {"student": "small", "teacher": "teacher", "temperature": 3.0}
    changed = load_recipe(write_recipe({"taught": {"label": "d", "task_distill": softer}}))
    first, second = (finetune_cell(r, "taught", "sentiment", 3).key for r in (recipe, changed))
    assert first != second


def test_taught_model_starts_from_the_cut_of_its_student(write_recipe):
    cut = {"label": "c", "extract": {"teacher": "teacher", "layers": [0]}}
    recipe = load_recipe(write_recipe({"small": cut}))
    parents = finetune_cell(recipe, "taught", "sentiment", 3).parents
    assert [cell.name for cell in parents] == ["small", "teacher-sentiment-3"]
    for model in ("taught", "small"):
        with pytest.raises(UserError, match="models/small: missing"):
            checkpoint(recipe, model)
    assert [c.name for c in evidence_cells(recipe) if c.stage == "extract"] == ["small"]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"taught": {"label": "d", "task_distill": {"student": "small", "teacher": "no"}}},
         "'no' is not among"),
        ({"again": {"label": "e", "task_distill": {"student": "taught", "teacher": "teacher"}}},
         "'taught' exists for a task only"),
        ({"cut": {"label": "e", "extract": {"teacher": "taught", "layers": [0]}}},
         "'taught' exists for a task only"),
        ({"taught": {"label": "d", "task_distill": {"student": "small", "teacher": "other"}},
          "other": {"label": "o", "task_distill": {"student": "small", "teacher": "taught"}}},
         "a circle of"),
        ({"taught": {"label": "d", "task_distill": {"student": "small", "teacher": "teacher",
                                                    "soft_weight": 2}}}, "soft_weight"),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused(write_recipe, models, words):
    with pytest.raises(UserError, match=words):
        load_recipe(write_recipe(models))


def test_training_on_a_test_split_is_refused(write_recipe):
    path = write_recipe(finetune_tasks={"sentiment": {"train_split": "validation"}})
    with pytest.raises(UserError, match="'validation' is a test split"):
        load_recipe(path)


def run(monkeypatch, *arguments, main=finetune.main.__wrapped__):
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments)])
    main()


def test_commands_from_teacher_to_student(write_recipe, monkeypatch, capsys, tmp_path):
    path = write_recipe()
    recipe = load_recipe(path)
    task = ("--recipe", path, "--task", "sentiment")
    taught, plain = ((*task, "--model", model, "--seed") for model in ("taught", "small"))
    with pytest.raises(UserError, match=r"sentiment-3: missing.*--seed 3 --save"):
        run(monkeypatch, *taught, 3)
    teacher = finetune_cell(recipe, "teacher", "sentiment", 3)
    run(monkeypatch, *teacher.command[2:])
    run(monkeypatch, *taught, 3)
    (cache,) = teacher.folder.glob("logits-*")
    kept = cache.stat().st_mtime_ns
    run(monkeypatch, *taught, 4)
    assert [p.stat().st_mtime_ns for p in teacher.folder.glob("logits-*")] == [kept]
    cell = finetune_cell(recipe, "taught", "sentiment", 4)
    record = read_record(cell.record)
    assert {used.name for used in record.data} == {"/".join(split) for split in cell.data}
    assert {"loss", "soft"} <= set(record.metrics["history"][-1])
    # recorded but without its folder, the teacher comes back with its student, and only then
    run(monkeypatch, *plain, 3)
    for cell in (teacher, *(finetune_cell(recipe, "taught", "sentiment", s) for s in (3, 4))):
        assert cell.is_recorded() and cell.key not in cells_to_run(recipe)
    teacher.folder.rename(tmp_path / "elsewhere")
    assert "finetune/teacher-sentiment-3" not in names(cells_to_run(recipe).values())
    finetune_cell(recipe, "taught", "sentiment", 4).record.unlink()
    assert names(cells_to_run(recipe).values()) == {
        "finetune/teacher-sentiment-3",
        "finetune/taught-sentiment-4",
        "finetune/teacher-sentiment-4",
        "finetune/small-sentiment-4",
    }
    # a teacher named on the command line: same numbers as in the recipe, another record
    before = read_record(finetune_cell(recipe, "small", "sentiment", 3).record)
    run(monkeypatch, *plain, 3, "--teacher", tmp_path / "elsewhere")
    named = read_record(recipe.folder / "finetune" / "small-sentiment-3-taught-by-elsewhere.json")
    of_recipe = read_record(finetune_cell(recipe, "taught", "sentiment", 3).record)
    assert named.metrics == of_recipe.metrics and named.metrics != before.metrics
    assert read_record(finetune_cell(recipe, "small", "sentiment", 3).record) == before
    for options, words in {
        ("--temperature", "3"): "need --teacher",
        ("--teacher", tmp_path / "bert"): "not a trained",
    }.items():
        with pytest.raises(UserError, match=words):
            run(monkeypatch, *plain, 3, *options)
    options = ("--teacher", tmp_path / "elsewhere", "--soft-weight", "7")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *plain, 3, *options, main=finetune.main)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --soft-weight 7")
    with pytest.raises(UserError, match="has a teacher in the recipe"):
        run(monkeypatch, *taught, 3, "--teacher", tmp_path / "elsewhere")
