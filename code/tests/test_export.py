"""Graphs in fp32 and int8 after reloading: equal logits, honest counts, foreign files."""

import shutil

import numpy as np
import onnx
import pytest
import torch

from distilbert_kit.data.batches import ClassificationDataset
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.model import DistilBERTForSequenceClassification, count_parameters
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.export import (
    CALIBRATION_ROWS,
    FILES,
    OnnxModel,
    calibration_rows,
    coarse_layers,
    count_onnx_parameters,
    load_fine_tuned,
    quantize_onnx,
    save_onnx,
    size_on_disk,
)
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.settings import TextSettings
from distilbert_kit.study.deployment import (
    latency_by_length,
    load_variants,
    score_variants,
    size_of_variants,
)
from distilbert_kit.training.classification import load_task_split, predict_logits
from distilbert_kit.training.fine_tuning import fine_tuned

GRAPHS = ("onnx_fp32", "onnx_int8")


def pairs(count=40):
    words = np.array(list("abcdefgh"))
    random = np.random.default_rng(0)
    drawn = [random.choice(words, size) for size in random.integers(1, 60, 2 * count)]
    texts = [" ".join(chosen) for chosen in drawn]
    return ClassificationDataset(list(zip(texts[::2], texts[1::2])), None, get_tokenizer())


def test_reloaded_graphs_give_the_logits_of_the_model(saved):
    model, _, graphs = saved
    dataset = pairs()
    expected = predict_logits(model, dataset)
    spread = expected.std()
    exact = predict_logits(OnnxModel(graphs, "fp32"), dataset)
    np.testing.assert_allclose(exact, expected, atol=1e-4 * spread)
    rounded = predict_logits(OnnxModel(graphs, "int8"), dataset)
    assert 0 < np.abs(rounded - expected).max() < 0.5 * spread


def test_a_subclass_is_saved_exported_and_read_as_what_it_extends(saved, tmp_path):
    class Ours(DistilBERTForSequenceClassification):
        def __init__(self, config, **classes):
            super().__init__(config, **classes)

    model, tokenizer = Ours.from_pretrained(saved[1], require_head=True), get_tokenizer()
    assert model.labels == saved[0].labels
    model.save_pretrained(tmp_path / "weights", tokenizer)
    save_onnx(model, tmp_path / "graphs", tokenizer)
    for name in ("weights", "graphs"):
        (label,) = load_predictor(tmp_path / name)(["a fine film"])
        assert label["label"] in model.labels


def test_token_types_reach_the_graph(saved):
    batch = pairs(2).collate([pairs(2)[0]])
    other = batch | {"token_type_ids": 1 - batch["token_type_ids"]}
    graph = OnnxModel(saved[2], "fp32")
    assert not torch.allclose(graph(**batch).logits, graph(**other).logits, atol=1e-3)


def test_every_weight_is_counted_packed_or_not(saved):
    model, weights, graphs = saved
    sizes = size_of_variants(weights, graphs)
    for name, size in sizes.items():
        assert size["parameters"] == count_parameters(model), name
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    embeddings = model.encoder.embeddings
    looked_up = embeddings.word_embeddings.weight.numel()
    looked_up += embeddings.token_type_embeddings.weight.numel()
    assert sizes["onnx_int8"]["parameters_int8"] == linear + looked_up
    assert sizes["onnx_int8"]["bytes"] < sizes["torch_fp32"]["bytes"] / 3
    # What the file holds: at least a byte for every packed weight, four for every other.
    packed = sizes["onnx_int8"]["parameters_int8"]
    assert sizes["onnx_int8"]["bytes"] > packed + 4 * (count_parameters(model) - packed)


def test_graph_files_tell_nothing_of_this_machine(saved):
    for name in FILES.values():
        content = (saved[2] / name).read_bytes()
        assert b"distilbert_kit/" not in content and b"site-packages" not in content


def test_scores_are_those_of_the_reloaded_files(saved, tmp_path):
    model, _, graphs = saved
    task, texts = get_task("sentiment"), TextSettings(max_length=32)
    dataset, table, _ = load_task_split(task, "validation", get_tokenizer(), texts)
    for name in ("input_ids", "token_type_ids", "lengths"):
        setattr(dataset, name, getattr(dataset, name)[:60])
    variants, truth = load_variants(model, graphs), np.asarray(table["label"][:60])
    found = score_variants(variants, dataset, truth, task)
    assert found["torch_fp32"]["agreement"] == 1.0 == found["onnx_fp32"]["agreement"]
    batch = dataset.collate([dataset[7]])
    batch.pop("labels")
    predicted = [
        variants["onnx_int8"](
            **{k: v for k, v in dataset.collate([dataset[i]]).items() if k != "labels"}
        ).logits.argmax()
        for i in range(60)
    ]
    assert found["onnx_int8"]["accuracy"] == np.mean(np.asarray(predicted) == truth)
    gap = found["onnx_int8"]["gap"]
    difference = found["onnx_int8"]["accuracy"] - found["torch_fp32"]["accuracy"]
    assert gap["estimate"] == pytest.approx(difference)
    assert gap["low"] <= gap["estimate"] <= gap["high"]
    assert "gap" not in found["torch_fp32"]
    # The same with the classes the other way round, named so: read in the order of the task.
    turned = DistilBERTForSequenceClassification(model.config, labels=model.labels[::-1])
    turned.load_state_dict(model.state_dict() | {
        name: values.flip(0) for name, values in model.state_dict().items()
        if name.startswith("classifier.")
    })  # fmt: skip
    turned.save_pretrained(tmp_path / "turned", get_tokenizer())
    again = fine_tuned(tmp_path / "turned", task)
    save_onnx(again, tmp_path / "graphs", get_tokenizer())
    assert score_variants(load_variants(again, tmp_path / "graphs"), dataset, truth, task) == found


def lookup_graph(folder, table):
    """A graph that looks up states [B, L, 4] and multiplies them with 3 columns."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(v, n) for n, v in (("e", table), ("w", weights))]
    nodes = [
        onnx.helper.make_node("Gather", ["e", "input_ids"], ["states"], "look_up"),
        onnx.helper.make_node("MatMul", ["states", "w"], ["logits"], "linear"),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, ["b", "l", *shape])
        for name, kind, shape in (
            ("input_ids", onnx.TensorProto.INT64, []), ("logits", onnx.TensorProto.FLOAT, [3])
        )
    ]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=tensors)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"


def test_a_layer_with_one_huge_token_stays_in_fp32(tmp_path, capsys):
    table = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    table[8] *= 1000
    source = lookup_graph(tmp_path, table)
    rows = [{"input_ids": torch.tensor([ids])} for ids in ([0, 1, 2, 8], [3, 4, 5])]
    assert coarse_layers(source, rows[1:]) == {}
    assert "calibrating: " in capsys.readouterr().err
    dead = {"input_ids": torch.tensor([[0, 8]])}  # token 0 is all zeros, as behind a dead ReLU
    (tmp_path / "dead").mkdir()
    silent = lookup_graph(tmp_path / "dead", np.where(np.arange(9)[:, None] == 0, 0, table))
    assert coarse_layers(silent, [dead, *rows]).keys() == {"linear"}
    squares = []  # by hand, a token at a time
    for row in rows:
        states = table[row["input_ids"][0]]
        step = (max(states.max(), 0) - min(states.min(), 0)) / 255
        for token in states:
            change = token - step * np.round(token / step)
            squares.append((change @ change) / (token @ token))
    found = coarse_layers(source, rows)
    assert found == {"linear": pytest.approx(np.mean(squares) ** 0.5, rel=1e-4)}
    for name, kept in (("all", {}), ("kept", found)):
        quantize_onnx(source, tmp_path / f"{name}.onnx", kept)
    parameters = {n: count_onnx_parameters(tmp_path / f"{n}.onnx") for n in ("all", "kept")}
    assert parameters["all"]["parameters_int8"] == table.size + 12
    assert parameters["kept"]["parameters_int8"] == table.size


def test_rows_for_calibration_are_some_of_the_training_set():
    dataset = pairs(120)
    rows = calibration_rows(dataset)
    assert len(rows) == CALIBRATION_ROWS and rows[0]["input_ids"].shape[0] == 1
    given = {tuple(ids) for ids in dataset.input_ids}
    assert all(tuple(row["input_ids"][0].tolist()) in given for row in rows)
    assert torch.equal(rows[0]["input_ids"], calibration_rows(dataset)[0]["input_ids"])


def test_latency_has_a_row_for_every_length(saved, capsys):
    rows = latency_by_length(load_variants(saved[0], saved[2]), [4, 512], repeats=2)
    assert [row["length"] for row in rows] == [4, 512]
    assert "timing: " in capsys.readouterr().err
    for row in rows:
        times = {name: row.pop(f"{name}_milliseconds") for name in ("torch_fp32", *GRAPHS)}
        assert min(times.values()) > 0
        assert set(row) == {"length", *(f"torch_fp32_over_{name}" for name in GRAPHS)}


def test_damaged_missing_and_too_long(saved, tmp_path):
    _, weights, graphs = saved
    with pytest.raises(UserError, match=r"model_quantized\.onnx: missing"):
        OnnxModel(weights)
    with pytest.raises(UserError, match=r"graphs without the weights they were made from"):
        DistilBERTForSequenceClassification.from_pretrained(graphs)
    assert isinstance(
        load_fine_tuned(DistilBERTForSequenceClassification, weights),
        DistilBERTForSequenceClassification,
    )
    assert isinstance(load_fine_tuned(DistilBERTForSequenceClassification, graphs), OnnxModel)
    (tmp_path / "config.json").write_bytes((graphs / "config.json").read_bytes())
    (tmp_path / FILES["int8"]).write_bytes((graphs / FILES["int8"]).read_bytes()[:-5000])
    with pytest.raises(UserError, match="not a readable ONNX graph"):
        OnnxModel(tmp_path)
    with pytest.raises(UserError, match="513 tokens: this model takes 512"):
        OnnxModel(graphs)(input_ids=torch.ones(1, 513, dtype=torch.int64))


def constant_graph(folder, outputs, kind=onnx.TensorProto.INT64):
    """A graph that gives the same whatever it reads; an output of None is one of 140 TB."""
    vector = onnx.helper.make_tensor
    nodes = [
        onnx.helper.make_node("Constant", [], ["one"], value=vector("", 1, [1], [1.0])),
        onnx.helper.make_node("Constant", [], ["huge"], value=vector("", 7, [1], [1 << 45])),
    ]
    for name, value in outputs.items():
        if value is None:
            nodes.append(onnx.helper.make_node("Expand", ["one", "huge"], [name]))
        else:
            value = onnx.numpy_helper.from_array(value.astype(np.float32))
            nodes.append(onnx.helper.make_node("Constant", [], [name], value=value))
    given = [
        onnx.helper.make_tensor_value_info(name, kind, ["rows", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    found = [onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", given, found),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, folder / FILES["int8"])


@pytest.mark.parametrize(
    ("outputs", "kind", "message"),
    [
        ({"logits": np.ones((1, 2))}, 7, r"the shape of its logits is \(1, 2\), not \(3, 2\)"),
        ({"logits": np.ones((3, 3))}, 7, r"the shape of its logits is \(3, 3\), not \(3, 2\)"),
        ({"logits": np.ones((3, 2))}, 6, "the graph fails"),
        ({"logits": None}, 7, "the graph fails"),
        (dict.fromkeys(("start_logits", "end_logits"), np.ones((1, 1))), 7, r"not \(3, 8\)"),
        (dict.fromkeys(("start_logits", "end_logits"), np.ones((3, 400))), 7, r"not \(3, 8\)"),
    ],
)
def test_a_foreign_graph_that_fails_or_gives_other_shapes_is_one_line(
    saved, tmp_path, capfd, outputs, kind, message
):
    shutil.copy(saved[2] / "config.json", tmp_path)
    constant_graph(tmp_path, outputs, kind)
    ids = torch.ones(3, 8, dtype=torch.int64)
    with pytest.raises(UserError, match=message):
        OnnxModel(tmp_path)(input_ids=ids, attention_mask=ids)
    assert not capfd.readouterr().err


def test_logits_of_a_teacher_are_no_weights(saved, tmp_path):
    """The kit leaves them beside a teacher: they count for no bytes and hide no graph."""
    _, weights, graphs = saved
    for folder in (weights, graphs):
        shutil.copytree(folder, tmp_path / folder.name)
        (tmp_path / folder.name / "logits-0123abcd.safetensors").write_bytes(bytes(1000))
    assert size_on_disk(tmp_path / "weights") == size_on_disk(weights)
    model = load_fine_tuned(DistilBERTForSequenceClassification, tmp_path / "graphs")
    assert isinstance(model, OnnxModel)


def test_constants_of_a_graph_are_no_parameters(tmp_path):
    floats = {"w": np.ones((2, 3)), "classifier.bias": np.ones(1), "factor": np.ones(1)}
    tensors = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in floats.items()]
    tensors.append(onnx.numpy_helper.from_array(np.ones((4, 5), np.int8), "v_quantized"))
    tensors.append(onnx.numpy_helper.from_array(np.ones(5, np.float32), "v_scale"))
    tensors.append(onnx.numpy_helper.from_array(np.ones(5, np.int8), "v_zero_point"))
    tensors.append(onnx.numpy_helper.from_array(np.ones(9, np.int64), "shape"))
    graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    found = count_onnx_parameters(tmp_path / "g.onnx")
    assert found == {"parameters": 27, "parameters_int8": 20, "scales": 10}
