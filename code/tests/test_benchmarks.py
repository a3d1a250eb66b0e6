"""The yardsticks themselves: textbook step, FLOPs of a training step, clocks, slow tokenizer."""

import time
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from benchmarks import corpus_speed, distillation_speed, shared
from distilbert_kit import machine
from distilbert_kit.corpus.prepare import encode_documents
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import LossWeights
from distilbert_kit.study.cells import BENCHMARK_STAGES
from distilbert_kit.study.measure import peak_memory, training_flops
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.runs import flops_per_token
from distilbert_kit.training.objectives import triple_objective


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tiny teacher and student, ours and transformers', with the same weights."""
    folder = tmp_path_factory.mktemp("pair")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 4, "num_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        config = create_model_config("bert-base-uncased", **shape)
        patch.setitem(distillation_speed.CONFIGS, "bert", config)
        distillation_speed.save_pair(folder)
    return {
        variant: distillation_speed.load_pair(variant, folder)
        for variant in distillation_speed.variants("fp32", "bf16")
    }


def masked_batch(dataset, rows):
    batch = dataset.collate([dataset[i] for i in rows])
    return dataset.mask(batch, torch.Generator().manual_seed(0))


def ours(pair, dataset, batch, weights=distillation_speed.WEIGHTS):
    objective = triple_objective(dataset, weights, pair[0])
    counts = {name: float(count) for name, count in objective.counts(batch).items()}
    return objective.loss(pair[1].eval(), batch, counts)[0]


def test_textbook_step_has_our_loss_and_gradient(pairs):
    dataset = distillation_speed.random_corpus(4, 24)
    dataset.sequences = [row[: 24 - 5 * i] for i, row in enumerate(dataset.sequences)]
    batch = masked_batch(dataset, range(4))
    teacher, student = (model.eval() for model in pairs["textbook_fp32"])
    expected = distillation_speed.textbook_loss(teacher, student, batch)
    found = ours(pairs["ours_fp32"], dataset, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward()
    expected.backward()
    gradients = [
        pairs["ours_fp32"][1].decoder_weight.grad,
        student.get_input_embeddings().weight.grad,
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    differences = distillation_speed.loss_differences(pairs, dataset, 4)
    assert differences["ours_fp32_relative"] < 1e-6 < differences["textbook_loss"]


def test_loss_in_bf16_is_really_in_bf16(pairs):
    """Rounding the factors of every product to 8 bits shows in the loss, and not by much."""
    dataset = distillation_speed.random_corpus(4, 24)
    found = distillation_speed.loss_differences(pairs, dataset, 4)
    assert found["head_dtype"] == {"fp32": "float32", "bf16": "bfloat16"}
    assert found["ours_fp32_relative"] < 1e-6 < found["ours_bf16_relative"] < 1e-2
    # a head that answers in fp32 all the same is told, not recorded as bf16
    student = pairs["ours_bf16"][1]
    kept, student.transform = student.transform, Exact(student.transform)
    found = distillation_speed.loss_differences(pairs, dataset, 4)
    student.transform = kept
    assert found["head_dtype"]["bf16"] == "float32"


class Exact(torch.nn.Module):
    """A layer that leaves autocast."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


@pytest.mark.parametrize("flags", ["avx2 fma", "avx2 avx512_bf16 amx_bf16"])
def test_bf16_is_measured_where_the_cpu_has_it_and_left_out_elsewhere(monkeypatch, flags):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": flags})
    monkeypatch.setattr(shared, "matrix_product_rate", lambda dtype: 1.0)
    has = "bf16" in flags
    assert shared.precisions() == (("fp32", "bf16") if has else ("fp32",))
    rates = shared.machine_rates()
    assert rates["bf16_gflops"] == (1.0 if has else None)
    assert rates.get("bf16") == (None if has else "not measured: no bf16 instructions")
    expected = ("textbook_fp32", "ours_fp32")
    if has:
        expected = ("textbook_fp32", "textbook_bf16", "ours_fp32", "ours_bf16")
    assert distillation_speed.variants() == expected


def test_every_stage_of_a_recipe_has_its_module():
    for stage in BENCHMARK_STAGES:
        assert callable(import_module(f"benchmarks.{stage}").measure)
        assert stage in benchmark.__doc__


def counted(function):
    counter = FlopCounterMode(display=False)
    # Under autocast the fused loss makes no product in place: the counter knows none of those.
    with counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autocast("cpu", torch.bfloat16):
            loss = function()
        loss.backward()
    return counter.get_total_flops()


def test_flops_of_a_training_step_equal_pytorchs_counter(pairs):
    dataset = distillation_speed.random_corpus(3, 20)
    batch = masked_batch(dataset, range(3))
    teacher, student = pairs["ours_fp32"]
    expected = training_flops(student.config, [20] * 3, teacher=teacher.config)
    assert expected == counted(
        lambda: distillation_speed.textbook_loss(*pairs["textbook_fp32"], batch)
    )
    assert expected == counted(lambda: ours(pairs["ours_fp32"], dataset, batch))
    assert expected == 60 * flops_per_token(student, dataset, LossWeights(), teacher)
    masked_lm = LossWeights(ce=0, cos=0)
    counted_here = counted(lambda: ours((None, student), dataset, batch, masked_lm))
    assert counted_here == round(60 * flops_per_token(student, dataset, masked_lm))


@pytest.mark.parametrize("maker", ["ours", "textbook"])
def test_parts_of_an_update_sum_to_the_whole_and_leave_the_models_alone(pairs, maker):
    dataset = distillation_speed.random_corpus(6, 12)
    collate = dataset.collate
    dataset.collate = lambda items: time.sleep(0.01) or collate(items)
    before = [p.clone() for p in pairs[f"{maker}_fp32"][1].parameters()]
    plan = [[0, 1], [2, 3], [4, 5]]
    parts = distillation_speed.RUNS[maker](pairs[f"{maker}_fp32"], dataset, plan, "fp32")
    total = parts.pop("total")
    beside = parts["data"] if maker == "ours" else 0  # on another thread
    assert sum(parts.values()) == pytest.approx(total + beside) and parts["data"] > 0.01
    assert set(parts) == {*distillation_speed.PARTS, "rest"} and min(parts.values()) > 0
    assert any(
        not torch.equal(a, b) for a, b in zip(before, pairs[f"{maker}_fp32"][1].parameters())
    )
    assert not any("forward" in vars(m) for m in pairs[f"{maker}_fp32"][1].modules())


def test_corpus_part_reads_the_same_tokens_in_groups_of_like_length(pairs):
    dataset = distillation_speed.random_corpus(24, 60)
    dataset.sequences = [row[: 12 + 2 * i] for i, row in enumerate(dataset.sequences)]
    dataset.lengths = np.array([len(row) for row in dataset.sequences])
    sample = distillation_speed.sample_by_length(dataset, 12)
    assert sample.lengths.min() == 12 and sample.lengths.max() == 58 and len(sample) == 12
    best = {name: pairs[name] for name in distillation_speed.variants("fp32")}
    described, measured = distillation_speed.measure_corpus(best, sample, 240, 2)
    padded = described["padded_tokens"]
    assert described["textbook_order"] == "grouped by length"
    order = np.random.default_rng(0).permutation(len(sample))
    parts = [sample.lengths[part] for part in np.array_split(order, described["updates"])]
    at_random = sum(len(part) * part.max() for part in parts)
    assert described["real_tokens"] <= padded["textbook"] < at_random
    assert set(measured["seconds"]) == {"textbook_fp32", "ours_fp32"}
    assert all(len(each) == 2 and min(each) > 0 for each in measured["seconds"].values())


def test_a_corpus_with_tokens_that_the_models_lack_is_refused():
    """MPNet's <mask> is the 30,527th token; BERT's embeddings are 30,522."""
    settings = load_recipe("study").distillation_speed
    recipe = load_recipe("base").model_copy(update={"distillation_speed": settings})
    with pytest.raises(UserError, match=r"a corpus of 30,527 tokens.* have 30,522"):
        distillation_speed.measure(recipe, Draft())


def test_peak_memory_is_that_of_the_call_alone():
    here = np.ones(64 << 17)  # this process holding more must not count
    assert peak_memory(np.ones, 96 << 17) == pytest.approx(96 << 20, rel=0.1)
    del here


def test_lines_are_distinct_and_enough():
    documents = [f"word{i} and word{i + 1} are what document {i} says" for i in range(20)]
    lines = list(corpus_speed.distinct_lines(documents, 5000))
    assert len(set(lines)) == len(lines) > 20 and lines[:20] == documents
    assert 5000 <= sum(len(line) + 1 for line in lines) < 5100
    with pytest.raises(corpus_speed.UserError, match="all that the source gives"):
        list(corpus_speed.distinct_lines(documents, 10**6))


def test_slow_tokenizer_gives_our_tokens(tmp_path):
    lines = ["A naïve café, isn't it?", "tokenisation of antidisestablishmentarianism", "北京 x"]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    tokenizer = corpus_speed.slow_tokenizer(tmp_path)
    source = open_source(f"lines:{text}")
    ours = [ids.tolist() for _, ids in encode_documents(source.read(), get_tokenizer())]
    assert ours == [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    assert corpus_speed.encode_slowly(tokenizer, text) == sum(len(ids) + 2 for ids in ours)
