"""Measuring: FLOP counts against PyTorch's counter, sizes, alternation, and the yardsticks."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import yaml
from rounding import ROUNDING
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distilbert_kit.data.batches import ClassificationDataset
from distilbert_kit.models.config import ModelConfig, create_model_config
from distilbert_kit.models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForSequenceClassification,
    DistilBERTModel,
    Dropout,
)
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, DATA
from distilbert_kit.study import measure
from distilbert_kit.study.evidence import speed
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import ShapeSpeedSettings
from distilbert_kit.training.classification import predict_logits

sys.path.insert(0, str(CODE))
from benchmarks import inference_speed, shape_speed, shared, size_speed

SHAPE = {"vocab_size": 101, "hidden_size": 24, "num_heads": 3, "intermediate_size": 56}
SHAPES = {
    "bert": ModelConfig(model_type="bert", num_layers=3, type_vocab_size=2, **SHAPE),
    "distilbert": ModelConfig(num_layers=2, **SHAPE),
}


def counted_flops(model, lengths):
    """As PyTorch counts; it knows attention on a CPU only when that is written out (MATH)."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        for length in lengths:
            model.eval()(torch.randint(0, 101, (1, length)))
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", SHAPES)
def test_flops_equal_pytorchs_counter(kind):
    config, lengths = SHAPES[kind], [5, 17, 17, 1]
    encoder = DistilBERTModel(config)
    assert measure.forward_flops(config, lengths) == counted_flops(encoder, lengths)
    classifier = DistilBERTForSequenceClassification(config, num_labels=2)
    expected = measure.forward_flops(config, lengths, head="classification", trimmed=True)
    assert expected == counted_flops(classifier, lengths)
    masked = DistilBERTForMaskedLM(config)
    assert measure.forward_flops(config, lengths, head="mlm") == counted_flops(masked, lengths)


@pytest.mark.parametrize("kind", SHAPES)
def test_flops_of_transformers_classifier(kind):
    config, lengths = SHAPES[kind], [5, 17]
    names = {"vocab_size": 101, "num_labels": 2}
    if kind == "bert":
        theirs = transformers.BertConfig(
            **SHAPE | {"num_attention_heads": 3, "num_hidden_layers": 3} | names
        )
    else:
        theirs = transformers.DistilBertConfig(
            dim=24, n_heads=3, hidden_dim=56, n_layers=2, **names
        )
    model = transformers.AutoModelForSequenceClassification.from_config(theirs)
    expected = measure.forward_flops(config, lengths, head="classification")
    assert expected == counted_flops(model, lengths)


@pytest.mark.parametrize("kind", SHAPES)
def test_size_by_part_agrees_with_transformers(kind, tmp_path):
    config = SHAPES[kind]
    ours = DistilBERTForSequenceClassification(config)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    sizes = [measure.model_size(model) for model in (ours, theirs)]
    same = [{k: v for k, v in size.items() if not k.startswith("bytes")} for size in sizes]
    assert same[0] == same[1]
    assert same[0]["parameters"] == theirs.num_parameters()
    assert same[0]["layers"] == config.num_layers
    embeddings = theirs.base_model.embeddings.parameters()
    assert same[0]["parameters_embeddings"] == sum(p.numel() for p in embeddings)
    # The file itself is 4 bytes a parameter and a header of names.
    on_disk = (tmp_path / "model.safetensors").stat().st_size
    assert sizes[1]["bytes_fp32"] == pytest.approx(on_disk, rel=0.01)
    halved = sizes[0]["bytes_fp32"] - sizes[0]["bytes_fp16"]
    assert halved == pytest.approx(2 * sizes[0]["parameters"], rel=0.01)


def test_alternation_calls_everything_as_often_and_takes_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    taken = measure.alternate(functions, repeats=4, warmup=2)
    assert {name: values.shape for name, values in taken.items()} == dict.fromkeys("abc", (4,))
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 6 and all(sorted(r) == list("abc") for r in rounds)
    assert [r[0] for r in rounds] == list("abcabc")


def test_alternation_over_items_times_each_item():
    seen = {"a": [], "b": []}
    functions = {name: seen[name].append for name in seen}
    taken = measure.alternate_over(functions, [10, 20, 30], passes=2)
    assert seen == dict.fromkeys("ab", [10, 20, 30] * 2)
    assert taken["a"].shape == (2, 3) and (taken["a"] > 0).all()


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), measure.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_lengths_are_those_of_1500_pairs_in_file_order():
    lengths = yaml.safe_load(shared.LENGTHS.read_text())
    assert (len(lengths), min(lengths), max(lengths)) == (1500, 11, 87)
    assert lengths[:4] != sorted(lengths)[:4]  # not from short to long
    if (DATA / "glue/stsb/validation.parquet").is_file():
        assert shared.stsb_pairs(1500)[0].lengths.tolist() == lengths


def test_pairs_without_data_have_the_same_lengths(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "DATA", tmp_path)
    dataset, used, texts = shared.stsb_pairs(60)
    assert (used, texts) == ([], None)
    assert dataset.lengths.tolist() == yaml.safe_load(shared.LENGTHS.read_text())[:60]
    batch = dataset.collate([dataset[i] for i in (0, 59)])
    assert batch["attention_mask"].sum(1).tolist() == dataset.lengths[[0, 59]].tolist()


def test_bucketed_predictions_equal_transformers_padded_batches():
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(dim=24, n_heads=3, hidden_dim=56, n_layers=2)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    texts = ["a film", "one of the best films of this or any year", "no", "so-so , really"] * 3
    dataset = ClassificationDataset(texts, None, get_tokenizer())
    padded = shared.classify(theirs, dataset.collate([dataset[i] for i in range(12)]))
    found = predict_logits(inference_speed.same_weights(theirs), dataset, batch_tokens=16)
    np.testing.assert_allclose(found, padded.numpy(), rtol=ROUNDING, atol=ROUNDING)


def test_interval_over_pairs_is_that_of_the_ratio_of_totals():
    """Long pairs weigh more in it, as in a pass; a median of ratios would say 1.5."""
    random = np.random.default_rng(0)
    distilbert = random.uniform(1, 2, (2, 400)) * np.where(np.arange(400) % 4, 1, 20)
    bert = distilbert * np.where(np.arange(400) % 4, 1.5, 2.0)
    taken = {
        f"{m}/{by}": t
        for by in shared.MAKERS
        for m, t in (("bert", bert), ("distilbert", distilbert))
    }
    found = shared.pass_totals(taken, *shared.MODELS)["over_pairs"]["ours"]
    total = bert.sum() / distilbert.sum()
    assert 1.85 < found["low"] < total < found["high"] < 2


def test_both_shapes_have_as_many_parameters_and_heads_as_wide():
    shallow = shared.CONFIGS["distilbert"]
    narrow = shape_speed.narrowed(shallow)
    assert (narrow.num_layers, narrow.hidden_size) == (12, 576)
    assert (narrow.intermediate_size, narrow.num_heads) == (2304, 9)
    configs = (narrow, shallow)
    assert {config.hidden_size // config.num_heads for config in configs} == {64}
    counts = [
        sum(weight.numel() for weight in shared.build_encoder(config, by).parameters())
        for config in configs
        for by in shared.MAKERS
    ]
    assert max(counts) < 1.01 * min(counts) and counts[0] == counts[1]


def test_both_shapes_are_timed_in_every_setting(monkeypatch):
    small = create_model_config(
        "distilbert-base-uncased", hidden_size=64, intermediate_size=256, num_heads=4
    )
    monkeypatch.setitem(shared.CONFIGS, "distilbert", small)  # as a dry run shrinks it
    monkeypatch.setattr(measure, "LARGEST", 64)
    few = {"shape_speed": ShapeSpeedSettings(pairs=6, passes=2)}
    recipe, draft = load_recipe("study").model_copy(update=few), Draft()
    shape_speed.measure(recipe, draft)
    told = {name: (row["layers"], row["width"]) for name, row in draft.metrics["shapes"].items()}
    assert told == {"narrow": (12, 48), "shallow": (6, 64)}
    rows = speed.shape_rows(SimpleNamespace(measured=draft))
    settings = {(row["threads"], row["maker"]) for row in rows}
    assert settings == set(itertools.product(shared.thread_counts(), shared.MAKERS))
    for row in rows:
        assert row["rounds"] == recipe.shape_speed.passes
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert 0 < row["over_pairs"]["low"] <= row["over_pairs"]["high"]


def test_peak_of_an_emulated_precision_takes_no_minutes(monkeypatch):
    """A machine of 0.5 GFLOP/s: 2048-wide products would take half a minute each."""
    clock, sides = [0.0], []

    def timed(functions, repeats, warmup=1):
        taken = []
        for _ in range(repeats):
            functions["work"]()
            clock[0] += 2 * sides[-1] ** 3 / 0.5e9
            taken.append(2 * sides[-1] ** 3 / 0.5e9)
        return {"work": np.array(taken)}

    def drawn(rows, columns, device):
        sides.append(rows)
        return torch.zeros(rows, columns)

    monkeypatch.setattr(measure, "alternate", timed)
    monkeypatch.setattr(measure.torch, "randn", drawn)
    assert measure.matrix_product_rate(torch.float32) == pytest.approx(0.5)
    assert clock[0] < 30 and sides[-1] < 2048


def test_summary_tells_layers_from_the_rest():
    """Times made of 2 ms a layer and 5 ms around them are taken apart again."""
    lengths = np.array([10, 11, 20, 30])
    taken = {
        f"{model}/{by}": np.full((3, 4), (2 * layers + 5) / 1e3)
        for model, layers in (("bert", 12), ("distilbert", 6))
        for by in shared.MAKERS
    }
    summary = shared.pass_totals(taken, *shared.MODELS) | size_speed.summarise_passes(
        taken, lengths
    )
    assert summary["over_pairs"]["ours"] == pytest.approx(
        {"low": 29 / 17, "high": 29 / 17}, abs=1e-4
    )
    found = summary["transformers_milliseconds"]
    assert found["per_layer"] == pytest.approx(2) and found["outside_layers"] == pytest.approx(5)
    assert summary["pass_seconds"]["bert/ours"] == pytest.approx([4 * 0.029] * 3)
    assert [row["pairs"] for row in summary["latency_by_length"]] == [2, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_p_and_keeps_the_mean(dtype, p):
    torch.manual_seed(0)
    x = torch.ones(997, 1003, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    dropped = (y == 0).double().mean()
    assert abs(float(dropped) - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert float(y.detach().double().mean()) == pytest.approx(1, rel=4e-3)  # bf16 rounds
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    # Neighbouring decisions come from one number: they must not depend on each other.
    gone = (y.detach().flatten()[: 4 * (y.numel() // 4)] == 0).double().view(-1, 4)
    correlation = np.corrcoef(gone.T.numpy())[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / len(gone) ** 0.5


def test_dropout_follows_the_seed_and_rests_in_evaluation():
    x, layer = torch.randn(5, 7), Dropout(0.3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("kind", SHAPES)
def test_classifier_that_computes_one_position_equals_the_whole(kind):
    torch.manual_seed(0)
    model = DistilBERTForSequenceClassification(SHAPES[kind]).eval()
    ids = torch.randint(1, 101, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1], [7]])).long()
    with torch.inference_mode():
        whole = model.encoder.last_hidden_state(ids, mask)
        first = model.encoder.last_hidden_state(ids, mask, positions=1)
    assert first.shape == (4, 1, 24)
    torch.testing.assert_close(first, whole[:, :1])


def test_attention_in_training_equals_pytorchs_without_dropout():
    torch.manual_seed(0)
    config = ModelConfig(num_layers=2, dropout=0.0, attention_dropout=0.0, **SHAPE)
    model = DistilBERTModel(config)
    ids = torch.randint(1, 101, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    training = model.train().last_hidden_state(ids, mask)
    torch.testing.assert_close(training, model.eval().last_hidden_state(ids, mask))
