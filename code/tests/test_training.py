"""The loop: exact accumulation, seeds, resume after kill -9, a loss that is not finite."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from distilbert_kit.data.batches import (
    LengthBatchSampler,
    create_classification_dataloader,
    create_dataloader,
    create_mlm_dataloader,
)
from distilbert_kit.data.grammar import build_sentiment
from distilbert_kit.errors import NonFiniteError, UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForSequenceClassification,
    Dropout,
)
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import LossWeights, TrainSettings
from distilbert_kit.training.checkpointing import HISTORY, read_position
from distilbert_kit.training.classification import (
    CLASSIFICATION,
    evaluate_classification_metrics,
    predict_logits,
)
from distilbert_kit.training.distillation import compute_mlm_loader_loss
from distilbert_kit.training.loop import (
    _generator,
    create_accelerator,
    create_optimizer,
    learning_rate_factor,
    train,
    updates_in_run,
)
from distilbert_kit.training.objectives import triple_objective


def classifier(dropout: float = 0.0) -> DistilBERTForSequenceClassification:
    torch.manual_seed(1)
    config = create_model_config(
        "tiny", dropout=dropout, attention_dropout=dropout, classifier_dropout=dropout
    )
    return DistilBERTForSequenceClassification(config, num_labels=2)


def loader(rows: int = 48, batch_size: int = 8, seed: int = 0):
    data = build_sentiment("train")[:rows]
    texts, labels = zip(*((row["sentence"], row["label"]) for row in data), strict=True)
    return create_classification_dataloader(
        texts, labels, get_tokenizer(), batch_size=batch_size, seed=seed
    )


def settings(**changes) -> TrainSettings:
    values = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32"}
    return TrainSettings(**values | changes)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(model, data, seed=0, **changes):
    return train(model, data, CLASSIFICATION, settings(**changes), seed=seed), weights(model)


def test_same_seed_same_weights_other_seed_other_weights():
    first, second, third = (run(classifier(0.1), loader(), seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_the_order_of_the_batches_follows_from_the_seed_of_the_run():
    """Without dropout nothing else does; the loader's own seed decides nothing."""
    first, second, third = (
        run(classifier(), loader(seed=of_loader), seed=seed)[1]
        for of_loader, seed in ((0, 3), (1, 3), (0, 4))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_batches_of_another_size_than_the_settings_are_refused():
    with pytest.raises(UserError, match="batch_size: 8 in the loader, 4 in the settings"):
        run(classifier(), loader(), batch_size=4)
    with pytest.raises(UserError, match="batch_tokens: None in the loader, 64 in the settings"):
        run(classifier(), loader(), batch_tokens=64)


def drawn_with(seed):
    """Of one update: the batch, masked; the unmasked one; what dropout makes of ones."""
    texts = [row["sentence"] for row in build_sentiment("train")[:8]]
    data, seen = create_mlm_dataloader(texts, get_tokenizer(), batch_size=8), []
    model = DistilBERTForMaskedLM(create_model_config("tiny"))
    plain = triple_objective(data.dataset, LossWeights(ce=0, cos=0))

    def prepare(batch, generator):
        seen.extend([plain.prepare(batch, generator), batch])
        return seen[0]

    def loss(model, *arguments):
        seen.append(model.encoder.embeddings.dropout(torch.ones(997)))
        return plain.loss(model, *arguments)

    data.batch_sampler.shuffle = False  # the same batch for all seeds
    train(model, data, replace(plain, prepare=prepare, loss=loss), settings(epochs=1), seed=seed)
    masked, batch, dropped = seen
    return data.dataset, masked, batch, dropped


def test_masks_and_dropout_follow_the_seed():
    """torch's CPU generator reads the low 32 bits of a seed only."""
    dataset, masked, batch, dropped = drawn_with(0)
    for seed in (1, 2, 56, 2**32 - 1):
        _, other_masked, other_batch, other_dropped = drawn_with(seed)
        assert torch.equal(batch["input_ids"], other_batch["input_ids"])
        assert not torch.equal(masked["labels"], other_masked["labels"])
        assert not torch.equal(dropped, other_dropped)
    generator = torch.Generator().manual_seed(0)  # as in the records of seed 0
    assert torch.equal(masked["input_ids"], dataset.mask(batch, generator)["input_ids"])
    torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
    assert torch.equal(dropped, Dropout(0.1)(torch.ones(997)))


def test_no_two_micro_batches_of_a_thousand_seeds_share_their_numbers():
    """Those of a seed are consecutive: a million of them end before the next seed's begin."""
    firsts = sorted(_generator(seed, 0).initial_seed() for seed in range(1000))
    gaps = [after - before for before, after in itertools.pairwise(firsts)]
    assert min(*gaps, firsts[0] + 2**32 - firsts[-1]) > 10**6
    assert [_generator(0, number).initial_seed() for number in (0, 1, 10**6)] == [0, 1, 10**6]


def numbers_of(lengths, batch_tokens=None, **changes):
    """The numbers of all micro-batches of a run with seed 0, in order, and its epochs' plans."""
    data = loader(rows=len(lengths))
    sampler = LengthBatchSampler(lengths, 8, batch_tokens, pool=1)
    seen, plans = [], []

    def prepare(batch, generator):
        seen.append(generator.initial_seed())
        return batch

    objective = replace(CLASSIFICATION, prepare=prepare)
    train(classifier(), create_dataloader(data.dataset, sampler), objective,
          settings(batch_tokens=batch_tokens, **changes), seed=0)  # fmt: skip
    for epoch in range(changes["epochs"]):
        sampler.set_epoch(epoch)
        plans.append(len(list(sampler)))
    return seen, plans


def test_numbers_of_micro_batches_never_repeat():
    """Under a token budget the epochs have unlike numbers of batches."""
    lengths = [5, 60] * 24
    for accumulation in (1, 3):
        found, plans = numbers_of(lengths, 200, epochs=4, accumulation=accumulation)
        assert len(set(plans)) > 1 and len(set(found)) == len(found) == sum(plans)
    assert numbers_of(lengths, epochs=3)[0] == list(range(18))  # as in records of equal plans


def test_accumulation_weighs_examples_not_micro_batches():
    """Two unequal micro-batches of an update give the gradient of the joint batch."""
    model, joint = classifier(), classifier()
    data = loader(rows=12, batch_size=8)  # micro-batches of 8 and 4
    whole = loader(rows=12, batch_size=12)
    _, split_weights = run(model, data, epochs=1, accumulation=2, max_grad_norm=1e9)
    _, joint_weights = run(joint, whole, epochs=1, batch_size=12, max_grad_norm=1e9)
    torch.testing.assert_close(split_weights, joint_weights, atol=1e-5, rtol=0)


def test_learns_the_training_set():
    result, _ = run(classifier(), loader(rows=64), epochs=25, learning_rate=3e-3)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.examples == 25 * 64
    assert result.updates == 25 * 8


def test_fractional_epochs_and_token_counts():
    data = loader(rows=40, batch_size=8)
    result, _ = run(classifier(), data, epochs=1.5)
    assert result.updates == 5 + 3
    one, _ = run(classifier(), data, epochs=1)
    assert one.tokens == int(data.dataset.lengths.sum())


def test_parts_of_an_epoch_are_exact_and_an_empty_one_ends():
    for epochs, expected in ((0.28, 7), (0.07, 2), (1.4, 35)):  # of 25 batches
        found = updates_in_run(loader(rows=50, batch_size=2), settings(epochs=epochs))
        assert found == expected
    data = loader(rows=8)
    nothing = data.dataset.select([])
    empty = create_dataloader(nothing, LengthBatchSampler(nothing.lengths, 8))
    assert run(classifier(), empty)[0].updates == 0


def test_the_loop_masks_once():
    """A loader for users masks its batches itself; the objective does in training."""
    texts = [row["sentence"] for row in build_sentiment("train")[:8]]
    data = create_mlm_dataloader(texts, get_tokenizer(), batch_size=8)
    seen = []

    def prepare(batch, generator):
        seen.append(batch)
        return data.dataset.mask(batch, generator)

    objective = replace(triple_objective(data.dataset, LossWeights(ce=0, cos=0)), prepare=prepare)
    train(DistilBERTForMaskedLM(create_model_config("tiny")), data, objective, settings(), seed=0)
    mask = data.dataset.mask_token_id
    assert seen and all("labels" not in batch for batch in seen)
    assert not any((batch["input_ids"] == mask).any() for batch in seen)


def test_a_gradient_that_is_not_finite_stops_the_last_update_too():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return loss.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.inf

    calls = itertools.count(1)

    def loss(*given):
        found, sums = CLASSIFICATION.loss(*given)
        return (Bad.apply(found) if next(calls) == 4 else found), sums

    model = classifier()
    with pytest.raises(NonFiniteError, match="gradient is not finite at update 4"):
        train(
            model, loader(rows=32), replace(CLASSIFICATION, loss=loss), settings(epochs=1), seed=0
        )
    assert weights(model).isfinite().all()


def test_logits_that_are_not_finite_are_no_prediction():
    model, data = classifier(), loader(rows=8)
    model.classifier.bias.data[0] = math.nan
    with pytest.raises(NonFiniteError, match="not finite in precision fp32; look at"):
        predict_logits(model, data.dataset)


def test_schedule_equals_transformers():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_linear_schedule_with_warmup(optimizer, 0, 37)
    for update in range(37):
        assert math.isclose(learning_rate_factor(update, 37, 0), reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    # with warm-up the first update already moves: 1/warmup instead of 0
    assert learning_rate_factor(0, 100, 10) == 0.1
    assert learning_rate_factor(9, 100, 10) == 1.0
    assert learning_rate_factor(99, 100, 10) == pytest.approx(1 / 90)


def test_weight_decay_spares_biases_and_norms():
    model = classifier()
    optimizer = create_optimizer(model, settings(weight_decay=0.1))
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "norm" in name
        assert (id(parameter) in decayed) is not spared, name


def test_non_finite_loss_names_the_update():
    model = classifier()
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="update 1 "):
        run(model, loader())


def test_fp16_without_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(classifier(), loader(), precision="fp16")


def test_bf16_is_close_to_fp32():
    _, exact = run(classifier(), loader(), epochs=1)
    result, rounded = run(classifier(), loader(), epochs=1, precision="bf16")
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.999
    assert math.isfinite(result.history[-1]["loss"])


@pytest.mark.parametrize("every", [3, None], ids=["by updates", "by time"])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, every):
    monkeypatch.setattr("distilbert_kit.training.loop.CHECKPOINT_SECONDS", 0)

    class StopError(Exception):
        pass

    def stop_after(updates):
        calls = iter(range(updates))

        def loss(*arguments):
            if next(calls, None) is None:
                raise StopError
            return CLASSIFICATION.loss(*arguments)

        return type(CLASSIFICATION)(CLASSIFICATION.counts, loss)

    arguments = {
        "seed": 0,
        "checkpoint_every": every,
        "checkpoints": tmp_path / "c",
        "identity": "a",
    }
    model = classifier(0.1)
    with pytest.raises(StopError):
        train(model, loader(), stop_after(8), settings(), **arguments)
    resumed = classifier(0.1)
    result = train(resumed, loader(), CLASSIFICATION, settings(), **arguments)
    whole, expected = run(classifier(0.1), loader())
    assert torch.equal(weights(resumed), expected)
    assert (result.updates, result.tokens) == (whole.updates, whole.tokens)
    with pytest.raises(UserError, match=r"another run \(learning_rate differ"):
        train(resumed, loader(), CLASSIFICATION, settings(learning_rate=1.0), **arguments)
    arguments["identity"] = "start, data and another loss"
    with pytest.raises(UserError, match=r"another run \(identity differ"):
        train(resumed, loader(), CLASSIFICATION, settings(), **arguments)
    arguments["identity"] = None
    with pytest.raises(ValueError, match="needs identity"):
        train(resumed, loader(), CLASSIFICATION, settings(), **arguments)


def test_the_history_on_disk_has_every_row_once(tmp_path, monkeypatch):
    """Stopped after update 9: the state on disk is of update 6, and the row of 8 comes again."""
    monkeypatch.setattr("distilbert_kit.training.loop.LOG_EVERY", 2)
    calls, path = iter(range(9)), tmp_path / "c" / HISTORY

    def loss(*given):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return CLASSIFICATION.loss(*given)

    arguments = {"seed": 0, "checkpoint_every": 6, "checkpoints": path.parent, "identity": "a"}
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), loader(), replace(CLASSIFICATION, loss=loss), settings(), **arguments)
    written = path.read_text()
    assert [json.loads(line)["update"] for line in written.splitlines()] == [2, 4, 6, 8]
    path.write_text(written + '{"upd')  # a line that was not finished
    result = train(classifier(), loader(), CLASSIFICATION, settings(), **arguments)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokens = [row.pop("tokens") for row in rows]
    assert rows == result.history == run(classifier(), loader())[0].history
    assert [row["update"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert tokens == sorted(set(tokens)) and tokens[-1] == result.tokens


def test_a_run_with_a_loss_scale_is_resumed(tmp_path, monkeypatch):
    """As fp16 on a GPU: torch steps the optimiser once, to make the state that it loads."""

    def scaling(precision):
        accelerator = create_accelerator(precision)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return accelerator

    monkeypatch.setattr("distilbert_kit.training.loop.create_accelerator", scaling)
    arguments = {"seed": 0, "checkpoint_every": 4, "checkpoints": tmp_path, "identity": "a"}
    calls = iter(range(6))

    def loss(*given):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return CLASSIFICATION.loss(*given)

    stopped = replace(CLASSIFICATION, loss=loss)
    with pytest.raises(KeyboardInterrupt):
        train(classifier(0.1), loader(), stopped, settings(), **arguments)
    assert read_position(tmp_path)["scaler"]["scale"] == 2048.0
    resumed = classifier(0.1)
    train(resumed, loader(), CLASSIFICATION, settings(), **arguments)
    assert torch.equal(weights(resumed), run(classifier(0.1), loader())[1])


FAULTS = """
import resource
import torch
from distilbert_kit.machine import keeping_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(16 << 20).fill_(1.0)  # 64 MiB, above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with keeping_freed_memory():
    faults()  # the heap grows to what it needs
    print(faults())
    with keeping_freed_memory():
        pass
    print(faults())
"""


def test_kept_memory_does_not_fault_again():
    """In a process of its own: another test's free block would be used again without a fault."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    returned, kept, still_kept = map(int, done.stdout.split())
    assert max(kept, still_kept) < returned / 5


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_loader_metrics_follow_the_model_to_its_device(device):
    """The accuracy of one whole batch; the masked-LM loss as a mean over tokens, not batches."""
    torch.manual_seed(0)
    tokenizer, texts = get_tokenizer(), [row["sentence"] for row in build_sentiment("train")[:12]]
    labels = [row["label"] for row in build_sentiment("train")[:12]]
    model = classifier().to(device)
    data = create_classification_dataloader(texts, labels, tokenizer, batch_size=5)
    inputs = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    guesses = model.eval()(**inputs).logits.argmax(-1).tolist()
    right = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
    found = evaluate_classification_metrics(model, data)
    assert found["accuracy"] == pytest.approx(right / 12)
    masked = list(create_mlm_dataloader(texts, tokenizer, batch_size=5))  # masks drawn once
    lm = DistilBERTForMaskedLM(create_model_config("tiny")).to(device).eval()
    losses = []
    for batch in masked:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        logits = lm(**inputs).logits
        losses += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten().to(device), reduction="none"
        )[batch["labels"].flatten().to(device) != -100].tolist()
    expected = sum(losses) / len(losses)
    assert compute_mlm_loader_loss(lm, masked) == pytest.approx(expected, rel=1e-5)
