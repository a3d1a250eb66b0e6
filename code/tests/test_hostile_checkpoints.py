"""Checkpoints and graphs with code in them: none is run, and no other file is read."""

import ast
import json
import pickle
import struct
import zipfile

import onnx
import pytest
import torch
from hostile import change
from onnx import TensorProto, helper

from distilbert_kit.errors import UserError
from distilbert_kit.paths import CODE
from distilbert_kit.serve.export import FILES
from distilbert_kit.serve.prediction import load_predictor


@pytest.fixture
def harm(tmp_path):
    """An object that leaves a file when it is unpickled; the file must not be there in the end."""
    canary = tmp_path / "harm"

    class Harm:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    yield Harm()
    assert not canary.exists()


def pickled(folder, content, name="pytorch_model.bin", old=False):
    torch.save(content, folder / name, _use_new_zipfile_serialization=not old)


def of_zip(folder, harm):
    pickled(folder, {"x": harm})


def of_before_2020(folder, harm):
    pickled(folder, {"x": harm}, old=True)


def plain(folder, harm):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(harm))


def in_a_shard(folder, harm):
    pickled(folder, {"x": harm}, "pytorch_model-1.bin")
    index = {"weight_map": {"x": "pytorch_model-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def beside_tensors(folder, harm):
    """A zip of torch's, whose pickle was exchanged."""
    pickled(folder, {"x": torch.ones(2)})
    with zipfile.ZipFile(folder / "pytorch_model.bin") as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as opened:
        for name, content in files.items():
            opened.writestr(name, pickle.dumps(harm) if name.endswith(".pkl") else content)


def in_a_script(folder, harm):
    """TorchScript, which is a program, under the name of weights."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "pytorch_model.bin"))


def under_the_other_name(folder, harm):
    (folder / "model.safetensors").write_bytes(pickle.dumps(harm))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "put",
    [of_zip, of_before_2020, plain, in_a_shard, beside_tensors, in_a_script, under_the_other_name],
    ids=lambda put: put.__name__,
)
def test_no_pickle_is_run(folder, harm, put):
    (folder / "model.safetensors").unlink()
    put(folder, harm)
    with pytest.raises(UserError, match=r"not readable as plain tensors|not a readable safeten"):
        load_predictor(folder)


CODE_OF_ITS_OWN = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "keys",
    [
        {"auto_map": CODE_OF_ITS_OWN},
        {"auto_map": CODE_OF_ITS_OWN, "trust_remote_code": True, "tokenizer_class": "Own"},
        {"tokenizer_class": "../own.Own"},
        {"tokenizer_class": "Own", "model_type": "own"},
    ],
    ids=lambda keys: " ".join(keys),
)
def test_no_code_of_a_folder_is_imported(folder, tmp_path, name, keys):
    canary = tmp_path / "imported"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    change(folder / name, **keys)
    try:  # a class that is not there may be passed over, the tokenizer.json says enough
        load_predictor(folder)
    except UserError as refused:
        assert "\n" not in str(refused)
    assert not canary.exists()


def test_the_kit_calls_nothing_that_runs_its_input():
    allowed = {"torch.load": "weights_only", "AutoTokenizer.from_pretrained": "trust_remote_code"}
    bad = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "np.load", "os.system"}
    seen = set()
    for path in [*CODE.glob("*.py"), *(CODE / "distilbert_kit").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert called not in bad and options.get("shell") is None, f"{path}: {called}"
            if called in allowed:
                seen.add((called, options.get(allowed[called])))
    assert seen == {("torch.load", "True"), ("AutoTokenizer.from_pretrained", "False")}


def graph(path, initializer, outputs=("logits",)):
    """logits = initializer, with the inputs of a classifier."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [None, None])
        for name in ("input_ids", "attention_mask")
    ]
    found = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in outputs]
    nodes = [helper.make_node("Identity", ["w"], [name]) for name in outputs]
    opset = [helper.make_opsetid("", 20)]
    made = helper.make_graph(nodes, "g", inputs, found, [initializer])
    model = helper.make_model(made, opset_imports=opset, ir_version=10)
    path.write_bytes(model.SerializeToString())


def external(location):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("place", ["../secret", "absolute", "link"])
def test_a_graph_reads_no_other_file(folder, tmp_path, place):
    (folder / "model.safetensors").unlink()
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<2f", 1, 2))
    (folder / "link").symlink_to(secret)
    location = str(secret) if place == "absolute" else place
    graph(folder / FILES["int8"], external(location))
    with pytest.raises(UserError, match=r"model_quantized\.onnx: .*; write it again"):
        load_predictor(folder)


def test_a_graph_of_other_inputs_or_outputs_is_told(folder):
    (folder / "model.safetensors").unlink()
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [1.0, 2.0])
    graph(folder / FILES["int8"], weights)
    assert load_predictor(folder)(["a fine film"])[0]["label"] == "LABEL_1"
    graph(folder / FILES["int8"], weights, ("logits", "more"))
    with pytest.raises(UserError, match="not the graph of a model of this kit"):
        load_predictor(folder)
    onnx.checker.check_model(onnx.load(folder / FILES["int8"]))  # it is a good one, but not ours


def test_control_characters_of_foreign_files_do_not_reach_the_terminal(folder):
    change(folder / "config.json", model_type="\x1b[2J\n\u009b31m\x00")
    with pytest.raises(UserError) as refused:
        load_predictor(folder)
    assert str(refused.value).isprintable()
