"""Distillation end to end: the objective against a naive one, accumulation, processes."""

import os
import subprocess
import sys
import time
from importlib import import_module

import psutil
import pytest
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.batches import LengthBatchSampler, create_dataloader
from distilbert_kit.data.grammar import build_sentiment
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.initialisation import extract_student
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.settings import CorpusSettings, LossWeights, MaskedLMSettings
from distilbert_kit.study.records import read_record
from distilbert_kit.training.checkpointing import CHECKPOINT
from distilbert_kit.training.distillation import (
    cast_linear_layers,
    check_pair,
    open_corpus,
    train_on_corpus,
)
from distilbert_kit.training.loop import train
from distilbert_kit.training.objectives import MASKED_LM, triple_objective

TOKENIZER = get_tokenizer()
CORPUS = CorpusSettings(source=["docs"])


def tiny_teacher(dropout: float = 0.0) -> DistilBERTForMaskedLM:
    torch.manual_seed(0)
    config = create_model_config(
        "bert-base-uncased",
        hidden_size=16,
        intermediate_size=32,
        num_layers=4,
        num_heads=2,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return DistilBERTForMaskedLM(config)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sentences of the grammar, three to a line."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [row["sentence"] for row in build_sentiment("train", 900)]
    lines = [". ".join(rows[i : i + 3]) for i in range(0, len(rows), 3)]
    (folder / "dump.txt").write_text("\n".join(lines))
    prepare_corpus(
        folder / "shards",
        [open_source(f"lines:{folder / 'dump.txt'}")],
        get_tokenizer(),
        validation_fraction=0.1,
    )
    return folder / "shards"


def settings(**changes) -> MaskedLMSettings:
    values = {"epochs": 0.25, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32"}
    return MaskedLMSettings(**values | changes)


def batch_of(corpus):
    dataset = open_corpus(corpus, "train", CORPUS, TOKENIZER)
    loader = create_dataloader(dataset, LengthBatchSampler(dataset.lengths, 8, pool=1))
    return dataset, dataset.mask(next(iter(loader)), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "weights",
    [
        LossWeights(),
        LossWeights(ce=0.0),
        LossWeights(mlm=0.0, temperature=4.0),
        LossWeights(cos=0.0),
        LossWeights(ce_rows="masked"),
    ],
    ids=["triple", "without_ce", "without_mlm", "without_cos", "ce_on_masked"],
)
def test_objective_equals_the_textbook_on_whole_models(corpus, weights):
    teacher = tiny_teacher()
    student = extract_student(teacher, [0, 2])
    dataset, batch = batch_of(corpus)
    objective = triple_objective(dataset, weights, teacher)
    denominators = {name: float(n) for name, n in objective.counts(batch).items()}
    loss, _ = objective.loss(student, batch, denominators)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    real, masked = batch["attention_mask"].bool(), batch["labels"] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        taught = teacher(**inputs).logits
        taught_hidden = teacher.encoder(**inputs).last_hidden_state
    logits = student(**inputs).logits
    hidden = student.encoder(**inputs).last_hidden_state
    rows, t = (real if weights.ce_rows == "all" else masked), weights.temperature
    ce = F.kl_div(
        F.log_softmax(logits[rows] / t, -1), F.softmax(taught[rows] / t, -1), reduction="batchmean"
    )
    mlm = F.cross_entropy(logits[masked], batch["labels"][masked])
    cos = 1 - F.cosine_similarity(hidden[real], taught_hidden[real], dim=-1).mean()
    naive = weights.ce * t * t * ce + weights.mlm * mlm + weights.cos * cos
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    naive.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_accumulation_is_exact_in_tokens(corpus):
    """Micro-batches of unequal token counts give the update of the joint batch, per term."""
    teacher = tiny_teacher()
    dataset, _ = batch_of(corpus)
    results = []
    for accumulation, size in ((1, 16), (2, 8)):
        student = extract_student(teacher, [1, 3])
        # the same sixteen sequences, masked alike: masks are drawn per micro-batch otherwise
        objective = triple_objective(dataset, LossWeights(), teacher)
        objective = type(objective)(objective.counts, objective.loss, every_fifth_masked)
        sampler = LengthBatchSampler(dataset.lengths[:16], size)
        train(
            student,
            create_dataloader(dataset, sampler),
            objective,
            settings(epochs=1, accumulation=accumulation, batch_size=size, max_grad_norm=1e9),
            seed=0,
        )
        results.append(flat(student))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def every_fifth_masked(batch, generator):
    labels = torch.full_like(batch["input_ids"], -100)
    chosen = (batch["input_ids"] % 5 == 0) & batch["attention_mask"].bool()
    labels[chosen] = batch["input_ids"][chosen]
    return batch | {"labels": labels}


def test_distillation_improves_every_term_on_held_out_text(corpus):
    teacher = tiny_teacher()
    student = extract_student(teacher, [0, 2])
    result, losses = train_on_corpus(
        student,
        TOKENIZER,
        corpus,
        CORPUS,
        settings(epochs=1),
        LossWeights(),
        seed=0,
        teacher=teacher,
    )
    assert set(losses["after"]) == {"ce", "mlm", "cos"}
    assert losses["after"]["mlm"] < losses["before"]["mlm"]
    assert result.tokens == int(
        open_corpus(corpus, "train", CORPUS, TOKENIZER).lengths.sum(dtype=int)
    )


def test_validation_in_between_changes_nothing_of_the_training(corpus):
    found = []
    for every in (None, 6):
        teacher = tiny_teacher(dropout=0.1)
        student = extract_student(teacher, [0, 2])
        given = settings(validate_every=every, epochs=0.5)
        trained = train_on_corpus(
            student, TOKENIZER, corpus, CORPUS, given, LossWeights(), seed=0, teacher=teacher
        )
        found.append((*trained, flat(student)))
    (plain, plain_losses, plain_weights), (often, losses, weights) = found
    assert torch.equal(plain_weights, weights) and plain_losses == losses
    assert plain.updates == often.updates == 18
    rows = {row["update"]: row for row in often.history}
    validated = [update for update, row in rows.items() if "validation_mlm" in row]
    assert validated == [6, 12, 18] and set(rows) == {6, 10, 12, 18}
    last = {name: rows[18][f"validation_{name}"] for name in ("ce", "mlm", "cos")}
    assert last == pytest.approx(losses["after"], abs=1e-6)
    assert not any("validation_mlm" in row for row in plain.history)


def test_masked_lm_needs_no_teacher_and_the_others_do(corpus):
    student = extract_student(tiny_teacher(), [0])
    _, losses = train_on_corpus(student, TOKENIZER, corpus, CORPUS, settings(), MASKED_LM, seed=0)
    assert list(losses["after"]) == ["mlm"]
    dataset, batch = batch_of(corpus)
    with pytest.raises(UserError, match="need a teacher"):
        triple_objective(dataset, LossWeights())
    teacher = tiny_teacher()
    teacher.encoder.last_hidden_state = None  # is not called
    alone = (triple_objective(dataset, MASKED_LM, given) for given in (teacher, None))
    sums = [objective.loss(student, batch, {"mlm": 10.0})[1]["mlm"] for objective in alone]
    assert torch.equal(*sums)


def test_a_weight_without_a_term_is_refused(corpus):
    class WithMore(LossWeights):
        attention: float = 0.0

    dataset, _ = batch_of(corpus)
    triple_objective(dataset, WithMore(), tiny_teacher())
    with pytest.raises(UserError, match="attention: a weight of the loss without a term; add"):
        triple_objective(dataset, WithMore(attention=0.5), tiny_teacher())


def test_teacher_in_the_dtype_of_its_products_teaches_the_same(corpus):
    teacher, (dataset, batch) = tiny_teacher(), batch_of(corpus)
    student = extract_student(teacher, [0, 2]).eval()
    losses = []
    for cast in (False, True):
        if cast:
            cast_linear_layers(teacher, "bf16")
        objective = triple_objective(dataset, LossWeights(), teacher)
        counts = {name: float(n) for name, n in objective.counts(batch).items()}
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(objective.loss(student, batch, counts)[0])
    assert torch.equal(*losses)


def test_unlike_pairs_are_refused():
    teacher = tiny_teacher()
    narrow = DistilBERTForMaskedLM(create_model_config("tiny", hidden_size=8, num_heads=2))
    with pytest.raises(UserError, match="L_cos needs equal widths"):
        check_pair(teacher, narrow, LossWeights())
    check_pair(teacher, narrow, LossWeights(cos=0.0))
    other = DistilBERTForMaskedLM(create_model_config("tiny", vocab_size=99))
    with pytest.raises(UserError, match="one vocabulary"):
        check_pair(teacher, other, LossWeights())


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_distillation import *
torch.set_num_threads(1)
teacher = tiny_teacher(dropout=0.1)
student = extract_student(teacher, [0, 2])
student.encoder.embeddings.position_embeddings.requires_grad_(False)  # no gradient to exchange
train_on_corpus(
    student, TOKENIZER, Path({corpus!r}), CORPUS, settings(**{settings!r}), LossWeights(),
    seed=3, teacher=teacher, checkpoints=Path({checkpoints!r}), identity="the same")
if int(__import__("os").environ.get("RANK", 0)) == 0:
    student.save_pretrained({out!r})
"""


def program(tmp_path, corpus, name, **changes):
    text = PROGRAM.format(
        tests=str(CODE / "tests"),
        corpus=str(corpus),
        settings={"checkpoint_every": 2, **changes},
        checkpoints=str(tmp_path / f"{name}-checkpoint"),
        out=str(tmp_path / name),
    )
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return path


GLOO = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def launched(path) -> list:
    """The command of two processes that run a program."""
    # the machine's own name may have no address
    launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    return [sys.executable, *launch, "--nproc-per-node", "2", path]


def test_two_processes_killed_and_resumed_equal_one(tmp_path, corpus):
    """Two gloo processes that share two micro-batches, killed after a checkpoint and started again,
    and one process that has both: the same masks, dropout and updates from the same settings."""
    # an odd number of micro-batches, so that the last window leaves one process without
    one = program(tmp_path, corpus, "one", accumulation=2, epochs=0.5)
    two = program(tmp_path, corpus, "two", accumulation=2, epochs=0.5)
    subprocess.run([sys.executable, one], check=True, capture_output=True, env=GLOO)
    launch = launched(two)
    running = psutil.Popen(launch, stderr=subprocess.DEVNULL, env=GLOO)
    while not (tmp_path / "two-checkpoint" / CHECKPOINT).exists():
        assert running.poll() is None
        time.sleep(0.01)
    for process in (running, *running.children(recursive=True)):
        process.kill()
    running.wait()
    assert not (tmp_path / "two").exists(), "it ended before it was killed"
    result = subprocess.run(launch, capture_output=True, text=True, env=GLOO)
    assert result.returncode == 0, result.stderr[-2000:]
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=0, msg=name)


def test_more_processes_than_micro_batches_are_refused(tmp_path, corpus):
    """They would make updates larger than those of the recipe, under the same key."""
    refused = subprocess.run(
        launched(program(tmp_path, corpus, "two")), capture_output=True, text=True, env=GLOO
    )
    assert refused.returncode != 0 and not (tmp_path / "two").exists()
    wanted = "too few micro-batches in an update for 2 processes; set it to a multiple of 2"
    assert wanted in refused.stderr


def test_scripts_run_from_a_recipe(tmp_path, corpus, monkeypatch, capsys):
    """prepare -> pretrain -> extract -> distill by their command lines, on a tiny recipe."""
    monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", tmp_path / "results")
    monkeypatch.setattr("distilbert_kit.study.measure.LARGEST", 64)
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    tiny_teacher().save_pretrained(tmp_path / "source", get_tokenizer())
    training = {"epochs": 0.02, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32"}
    content |= {
        "name": "tiny",
        "corpus": {
            "source": [f"lines:{corpus.parent / 'dump.txt'}"],
            "limit_tokens": 4000,
            "validation_fraction": 0.1,
        },
        "pretrain": training,
        "distill": training,
        "demo": [],
        "models": {
            "source": {"label": "source", "weights": str(tmp_path / "source")},
            "teacher": {"label": "teacher", "pretrain": {"start": "source"}},
            "cut": {"label": "cut", "extract": {"teacher": "teacher", "layers": [0, 2]}},
            "distilled": {"label": "d", "distill": {"teacher": "teacher", "student": "cut"}},
            "fixed": {
                "label": "f",
                "distill": {"teacher": "teacher", "student": "cut", "freeze_positions": True},
            },
        },
        "teacher": "teacher",
        "student": "distilled",
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))

    def run(script, *arguments):
        words = [f"{script}.py", "--recipe", tmp_path / "tiny.yaml", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        import_module(script).main()

    run("prepare_corpus")
    run("pretrain", "--model", "teacher")
    run("extract_student", "--model", "cut")
    run("distill", "--model", "distilled")
    run("distill", "--model", "fixed")
    run("distill", "--model", "distilled", "--teacher", tmp_path / "source", "--layers", "3,")
    assert (tmp_path / "results/tiny/models/distilled/model.safetensors").exists()
    assert not (tmp_path / "results/tiny/checkpoints/distilled").exists()
    cut, distilled, fixed = (
        load_file(tmp_path / f"results/tiny/models/{name}/model.safetensors")
        for name in ("cut", "distilled", "fixed")
    )
    moved = {name for name in cut if not torch.equal(cut[name], fixed[name])}
    frozen = {name for name in cut if "position_embeddings" in name}
    assert len(frozen) == 1 and moved == cut.keys() - frozen
    assert moved | frozen == {name for name in cut if not torch.equal(cut[name], distilled[name])}
    extra = read_record(tmp_path / "results/tiny/distill/distilled.json").measured.extra
    assert extra["processes"] == 1
    other = DistilBERTForMaskedLM.from_pretrained(
        tmp_path / "results/tiny/models/distilled-from-source", require_head=True
    )
    assert other.config.num_layers == 1
    record = read_record(tmp_path / "results/tiny/distill/distilled-from-source.json")
    assert record.settings["teacher"] == record.settings["weights"]["source"] == "source"
    student = record.settings["student"]["extract"]
    assert (student["teacher"], student["layers"]) == ("source", [3])
    assert [given.name for given in record.inputs] == ["teacher:source"]
    card = ModelCard.load(tmp_path / "results/tiny/models/distilled-from-source/README.md")
    assert card.data.base_model == ["source"]
    with pytest.raises(SystemExit) as stopped:
        run("distill", "--model", "cut")
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: recipe tiny: 'cut' is no model to distil")
