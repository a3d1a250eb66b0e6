"""Hostile files and names: no code is run, no path leaves its folder, no bomb unpacks, no shell."""

import ast
import io
import json
import os
import pickle
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from hostile import bounded, change, save_classifier
from onnx import TensorProto, helper

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.listed import read_sources
from distilbert_kit.data.weights import unpack
from distilbert_kit.data.wikipedia import build_articles
from distilbert_kit.errors import UserError
from distilbert_kit.foreign import read_json
from distilbert_kit.models.checkpoints import get_tokenizer, read_weights, resolve_checkpoint
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.packaged import MINILM, PACKAGED_SHA256, Origin
from distilbert_kit.paths import CODE, RECIPES, ROOT
from distilbert_kit.serve.app import HEADERS, create_app
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.export import FILES
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.serve.server import create_server
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record

LONG = "in words that were written long ago in another country"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("original") / "m")


@pytest.fixture
def folder(original, tmp_path):
    """A good checkpoint, to be made a bad one."""
    return Path(shutil.copytree(original, tmp_path / "m"))


@pytest.fixture
def harm(tmp_path):
    """An object that leaves a file when it is unpickled; the file must not be there in the end."""
    canary = tmp_path / "harm"

    class Harm:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    yield Harm()
    assert not canary.exists()


# --- code in checkpoints ------------------------------------------------------------------------


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


# --- graphs -------------------------------------------------------------------------------------


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


# --- names that are paths -----------------------------------------------------------------------

ELSEWHERE = ("../x", "/x", "..", "a/b", "", "a\0b", "a\nb", "a b", ".x", "-x", "~", "x" * 65, "$x")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_in_recipes_are_names_of_files(tmp_path, name):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {"name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content | {"name": name}))
    with pytest.raises(UserError, match=r"mine\.yaml: name: "):
        load_recipe(path)
    models = content["models"] | {name: content["models"]["minilm"]}
    path.write_text(yaml.safe_dump(content | {"models": models}))
    with pytest.raises(UserError, match=r"mine\.yaml: models\."):
        load_recipe(path)
    for place in (f"../recipes/{name}", "../recipes/quick", str(RECIPES / "quick")):
        with pytest.raises(UserError, match="no such recipe"):
            load_recipe(place)


def test_all_that_a_recipe_writes_is_in_its_folder():
    for path in RECIPES.glob("*.yaml"):
        if path.stem != "claims":
            recipe = load_recipe(path.stem)
            for cell in evidence_cells(recipe):
                for place in (cell.record, cell.folder, cell.checkpoints, *cell.outputs):
                    assert place.resolve().is_relative_to(recipe.folder.resolve())


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../b", "a//b", "a/", "..", "", "a\nb"])
def test_names_in_lists_of_data_are_names_of_files(tmp_path, name):
    path = tmp_path / "sources.yaml"
    split = {"rows": 1, "sha256": None}
    for content in (
        {name: {"splits": {"train": split}}},
        {"a": {"splits": {name: split}}},
        {"a": {"splits": {"train": split | {"chosen_by": name, "chosen_from": "b"}}}},
    ):
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match="not a list of data sets") as refused:
            read_sources(path)
        assert "Value error" not in str(refused.value)


def test_a_manifest_names_no_file_elsewhere(tmp_path):
    """A corpus of another key makes room for the new one: what the manifest lists goes."""
    victim, text = tmp_path / "victim.bin", tmp_path / "text"
    victim.write_text("mine")
    text.write_text("\n".join(f"the history of language number {n} {LONG}" for n in range(30)))
    prepare_corpus(tmp_path / "c", [open_source(f"lines:{text}")], get_tokenizer(), key="one")
    path = tmp_path / "c" / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["shards"][0]["name"] = "../victim"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no corpus of this kit"):
        prepare_corpus(tmp_path / "c", [open_source(f"lines:{text}")], get_tokenizer(), key="two")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/dev/zero", "pipe", ".", 7])
def test_an_index_names_files_of_its_folder(folder, tmp_path, shard):
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    os.mkfifo(folder / "pipe")
    index = {"weight_map": {"a": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with bounded(), pytest.raises(UserError):
        read_weights(folder)


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, device])
def test_pipes_and_devices_are_not_read(folder, tmp_path, make):
    for name in ("config.json", "tokenizer.json", "vocab.txt", "model.safetensors"):
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with bounded(), pytest.raises(UserError, match="a pipe or a device"):
            load_predictor(folder)
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)
    path = tmp_path / "r.yaml"
    make(path)
    (tmp_path / "text" / "AA").mkdir(parents=True)
    make(tmp_path / "text" / "AA" / "wiki_00")
    for read in (load_recipe, read_record, read_json, lambda path: open_source(f"lines:{path}")):
        with bounded(), pytest.raises(UserError):
            read(path)
    with bounded(), pytest.raises(UserError, match="not a regular file"):
        build_articles(tmp_path, 1)


def test_a_folder_does_not_pass_for_weights_known_by_their_hash(folder, monkeypatch):
    folder.rename(folder.with_name(MINILM))
    monkeypatch.chdir(folder.parent)
    found = resolve_checkpoint(MINILM)
    assert found.is_absolute() and PACKAGED_SHA256[MINILM]
    assert resolve_checkpoint(f"./{MINILM}") == Path(MINILM)


def archive(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"6"])
def test_archives_hold_files_and_nothing_else(tmp_path, kind):
    name = "../../r/text/AA/wiki_00"
    path = archive(tmp_path / "a.tar.gz", (name, kind, b""), ("p/x.zip.001", kind, b""))
    with bounded(), pytest.raises(UserError, match="0 article files"):
        build_articles(path, 1)
    origin = Origin("hub", "main", "p", "1", 1, 10, "0" * 64)
    with bounded(), pytest.raises(UserError, match=r"part 1 .* is not in it"):
        unpack("x", origin, [path], tmp_path / "weights")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]


# --- shells -------------------------------------------------------------------------------------

STRANGE = "a ;touch canary; $(touch canary) `touch canary` 'b' \"c\" #d: [e\nf"


@pytest.fixture
def project(tmp_path):
    """The project's Makefile and code in a folder of their own, with this Python as its own."""
    root = tmp_path / "project"
    (root / ".venv").mkdir(parents=True)
    for name in ("Makefile", "code", "requirements.txt"):
        (root / name).symlink_to(ROOT / name)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv" / ".installed").touch()
    return root


def make(root, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": str(CODE)} | variables
    return subprocess.run(
        ["make", *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("target", ["data", "dry-run", "notebooks"])
def test_no_text_of_a_recipe_reaches_a_shell(project, target):
    for option in ("RECIPE", "DATASET")[: 1 + (target == "data")]:
        done = make(project, target, f"{option}={STRANGE}")
        assert done.returncode == 2 and not list(project.rglob("canary"))
        shown = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(shown) == 1 and "touch canary" in shown[0]


def test_clean_takes_the_folder_of_the_results(project, tmp_path):
    for root in (project / "results", tmp_path / STRANGE):
        (root / "r" / "models").mkdir(parents=True)
        (root / "r" / "record.json").touch()
    assert make(project, "clean", RESULTS_DIR=str(tmp_path / STRANGE)).returncode == 0
    assert [path.name for path in (tmp_path / STRANGE / "r").iterdir()] == ["record.json"]
    assert (project / "results" / "r" / "models").is_dir()
    assert not list(tmp_path.rglob("canary"))


def test_strange_names_of_recipe_model_data_and_results_are_only_names(project, tmp_path):
    """A whole reproduction, without its report, by `make` in folders that would be commands."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    shape = create_model_config("bert-tiny", vocab_size=30522, hidden_size=8, num_layers=2)
    DistilBERTForMaskedLM(shape).save_pretrained(folder / "teacher", get_tokenizer())
    lines = [f"the history of words, number {n} {LONG}" for n in range(99)]
    (folder / "text").write_text("\n".join(lines))
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content = {key: content[key] for key in ("title", "scale", "seeds", "finetune")} | {
        "name": "strange",
        "models": {"teacher": {"label": "t", "weights": str(folder / "teacher")}},
        "teacher": "teacher",
        "student": "teacher",
        "tasks": [],
        "corpus": {"source": [f"lines:{folder / 'text'}"], "validation_fraction": 0.1},
    }
    (folder / "strange.yaml").write_text(yaml.safe_dump(content))
    results = folder / "results"
    recipe = f"RECIPE={folder / 'strange.yaml'}"
    done = make(project, "reproduce", "CONFIG=publish=False", recipe, RESULTS_DIR=str(results))
    assert done.returncode == 0, done.stderr
    assert (results / "strange" / "corpus" / "corpus.json").is_file()
    assert not list(tmp_path.rglob("canary")) and not (ROOT / "canary").exists()


def test_the_commands_of_the_graph_are_lists_of_words():
    """Snakemake's shell gets them through shlex: what it reads back are the same words."""
    text = (CODE / "Snakefile").read_text()
    assert text.count("shell:") == text.count("shlex.join(") == 2
    assert shlex.split(shlex.join(["python", STRANGE])) == ["python", STRANGE]


def test_control_characters_of_foreign_files_do_not_reach_the_terminal(folder):
    change(folder / "config.json", model_type="\x1b[2J\n\u009b31m\x00")
    with pytest.raises(UserError) as refused:
        load_predictor(folder)
    assert str(refused.value).isprintable()


# --- the page -----------------------------------------------------------------------------------


def test_every_answer_of_the_server_has_the_headers(original, tmp_path):
    """Also what is refused before the app sees it; nothing but the loopback listens."""
    served = create_server(create_app(Comparison({"m": original}, tmp_path)), "127.0.0.1", 0)
    threading.Thread(target=served.run, daemon=True).start()
    where = ("127.0.0.1", served.effective_port)
    for request in (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /static/..%2f..%2fdemo.py HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 9_999_999,
    ):
        with socket.create_connection(where, timeout=20) as sender:
            sender.sendall(request)
            sender.shutdown(socket.SHUT_WR)
            answer = sender.makefile("rb").read().decode()
        head = answer.partition("\r\n\r\n")[0].lower()
        for name, value in HEADERS.items():
            assert f"{name}: {value}".lower() in head, request[:40]
        assert "entry_point" not in answer and "root:" not in answer
    served.close()
    others = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1"}
    assert served.effective_host == "127.0.0.1", others
