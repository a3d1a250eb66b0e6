"""Foreign files, mutated: what is read is read, or refused in one line, within 10 s and a GiB.

`pytest --hypothesis-profile=nightly code/tests/test_fuzzing.py` tries 2,000 of each.
"""

import functools
import gzip
import io
import itertools
import json
import math
import shutil
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hostile import SPECIAL, TEXTS, damaged, mutated, told
from hypothesis import example, given, strategies as st
from safetensors.torch import load_file, save_file

from distilbert_kit.corpus import prepare
from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.shards import open_shards
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.csv import load_labelled_texts, split_texts
from distilbert_kit.data.questions import read_questions
from distilbert_kit.data.sources import read_sources
from distilbert_kit.data.weights import unpack
from distilbert_kit.data.wikipedia import build_articles
from distilbert_kit.foreign import read_yaml
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.packaged import Origin
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES, RESULTS, ROOT
from distilbert_kit.serve.app import create_app
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.serve.reading import read_questions_and_contexts, read_texts
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import is_current, read_record
from distilbert_kit.training.checkpointing import CHECKPOINT, read_position


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_json(value):
    return json.dumps(value).encode()


# --- recipes, records, lists --------------------------------------------------------------------

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TEXT_OF = {name: (RECIPES / f"{name}.yaml").read_bytes() for name in NAMES}
RECIPE = {name: yaml.safe_load(text) | {"name": "mine"} for name, text in TEXT_OF.items()}


def walk_recipe(path):
    """As far as the experiment graph goes before anything is run: the records of all cells."""
    return {cell.record: cell.key for cell in evidence_cells(load_recipe(path))}


def check_recipe(path):
    """A recipe that is taken means one thing, and writes below the results only."""
    records = told(walk_recipe, path)
    assert records is None or records == walk_recipe(path)
    assert all(record.resolve().is_relative_to(RESULTS.resolve()) for record in records or ())


@given(st.sampled_from(NAMES).flatmap(lambda name: mutated(RECIPE[name])))
def test_recipes(folder, content):
    check_recipe(put(folder / "mine.yaml", yaml.safe_dump(content)))


@given(st.sampled_from(NAMES).flatmap(lambda name: damaged(TEXT_OF[name])))
def test_texts_of_recipes(folder, content):
    check_recipe(put(folder / "mine.yaml", content))


YAML = st.text(st.sampled_from("ab:-[]{}&*!|>?,#'\"%@<= \n\t01.~"), max_size=60)


@given(YAML | st.text(max_size=60))
def test_yaml(folder, content):
    found = told(read_yaml, put(folder / "any.yaml", content.encode(errors="replace")))
    text = json.dumps(found)  # what is read is plain: results can hold it
    assert json.dumps(json.loads(text)) == text


LISTED = yaml.safe_load((ROOT / "data" / "sources.yaml").read_text())


@given(mutated({name: LISTED[name] for name in ("squad", "wikipedia")}))
def test_lists_of_data_sets(folder, content):
    listed = told(read_sources, put(folder / "sources.yaml", yaml.safe_dump(content)))
    for dataset, source in (listed or {}).items():
        for split in source["splits"]:
            assert (folder / dataset / split).resolve().is_relative_to(folder.resolve())


RECORDS = sorted((ROOT / "results").glob("*/*/*.json"), key=lambda path: path.stat().st_size)
RECORD = json.loads(next(p for p in RECORDS if p.parent.name == "finetune").read_text())


@given(st.one_of(mutated(RECORD).map(as_json), damaged(as_json(RECORD))))
def test_records(folder, content):
    path = put(folder / "record.json", content)
    record = told(read_record, path)
    assert not is_current(path, "key")
    assert is_current(path, RECORD["key"]) == (
        record is not None and (record.status, record.key) == ("ok", RECORD["key"])
    )


# --- texts --------------------------------------------------------------------------------------

CSV = b"text,label\n" + b"".join(b'"a fine film, no. %d",%d\n' % (n, n % 2) for n in range(12))
CELLS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(['"', "a,b", "", "1.0"])
TABLES = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=8).map("\n".join)
CSVS = st.one_of(damaged(CSV), TABLES.map(lambda text: f"text,label\n{text}".encode()))


def split_csv(path):
    return split_texts(load_labelled_texts(path, drop_missing=True), 0)


@given(CSVS, st.sampled_from(["utf-8-sig", "cp1252", "utf-16", "base64", "no such"]))
def test_csvs(folder, content, encoding):
    path = put(folder / "texts.csv", content)
    parts = told(split_csv, path) or {}
    texts = [set(part["text"].str.split().str.join(" ")) for part in parts.values()]
    assert not any(a & b for a, b in itertools.combinations(texts, 2))  # no text in two splits
    told(load_labelled_texts, path, encoding=encoding)
    told(read_texts, path, None, "utf-8-sig")
    told(read_texts, path, ["text", "label"], encoding)
    told(read_questions, path, ("text", "text", "label"), True)
    told(read_questions_and_contexts, path, ("text", "label"), "utf-8-sig")


ASKED = {"id": "1", "question": "When?", "answers": [{"text": "1823", "answer_start": 3}]}
SQUAD = {"version": "1.1", "data": [{"title": "Mill", "paragraphs": [{}, {}]}]}
SQUAD["data"][0]["paragraphs"] = [{"context": "In 1823.", "qas": [ASKED, ASKED | {"id": "2"}]}]


@given(st.one_of(mutated(SQUAD).map(as_json), damaged(as_json(SQUAD))))
def test_files_of_squad(folder, content):
    path = put(folder / "dev.json", content)
    rows = told(read_questions, path, drop_unanswerable=True)
    pa.Table.from_pylist(rows or [])  # the format of the columns
    assert all(row["question"].strip() and row["answers"]["text"] for row in rows or ())
    told(read_questions_and_contexts, path, None, "utf-8-sig")


def read_source(spec, **options):
    return list(open_source(spec, **options).read())


LINES = b"".join(b'{"question": "When?", "context": "In %d."}\n' % n for n in range(4))


@given(damaged(LINES))
def test_lines(folder, content):
    path = put(folder / "lines.jsonl", content)
    told(read_questions_and_contexts, path, None, "utf-8-sig")
    told(read_texts, path, None, "utf-8-sig")
    texts = told(read_source, f"lines:{path}", encoding_errors="strict")
    replaced = told(read_source, f"lines:{path}", encoding_errors="replace")
    assert texts in (None, replaced)  # nothing to replace where nothing is wrong


def parquet(texts):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), sink)
    return sink.getvalue()


@given(damaged(parquet(["one", None, "two"] * 20)))
def test_parquet(folder, content):
    texts = told(read_source, f"parquet:{put(folder / 'texts.parquet', content)}")
    assert all(isinstance(text, str) for text in texts or ())


KINDS = ("lines", "parquet", "data", "docs", "", "csv")
PLACES = TEXTS | st.sampled_from([*SPECIAL, "glue/cola/train", "../x/train", "squad/../train"])


@given(st.sampled_from(KINDS), PLACES)
def test_names_of_sources(kind, place):
    source = told(open_source, f"{kind}:{place}")
    assert source is None or kind in KINDS[:4]


ARTICLE = '<doc id="1" url="u" title="A">\nA\n\nA sentence that says something.\n\n</doc>\n'


def archive(files, mode):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def articles(content):
    return archive({"r/text/AA/wiki_00": content, "r/README": b""}, "w")


@example(articles(b'<doc id="1" url="" title="">\n\n' * 16_000))  # none of them ends
@example(articles(ARTICLE.replace('"A"', f'"&#{"1" * 5000};"').encode()))
@given(damaged(articles(ARTICLE.encode() * 9)))
def test_archives_of_articles(folder, content):
    for packed in (gzip.compress(content, 1), content):
        splits = told(build_articles, put(folder / "wiki.tar.gz", packed), 1) or {}
        assert all(row["title"] and row["text"] for rows in splits.values() for row in rows)


ZIPPED = io.BytesIO()
with zipfile.ZipFile(ZIPPED, "w", zipfile.ZIP_DEFLATED) as opened:
    opened.writestr("p/x.zip.001", b"part " * 40)
PARTS = [ZIPPED.getvalue(), archive({"p/x.zip.001": b"part " * 40}, "w:gz")]
ORIGIN = Origin("hub", "main", "p-{:03d}", "1", 1, 200, "0" * 64)


@given(st.sampled_from(PARTS).flatmap(damaged))
def test_packages_of_weights(folder, content):
    told(unpack, "x", ORIGIN, [put(folder / "part", content)], folder / "weights")
    assert not (folder / "weights").exists()


# --- corpora ------------------------------------------------------------------------------------


TOKENIZER = get_tokenizer()


@pytest.fixture(scope="module")
def corpus(folder):
    """A prepared corpus and its two JSON files."""
    text = "\n".join(f"this is line number {n} of a book in the city of Paris" for n in range(9))
    source = open_source(f"lines:{put(folder / 'dump.txt', text)}")
    prepare_corpus(folder / "corpus", [source], TOKENIZER, validation_fraction=0.3)
    names = ("manifest.json", "counts.json")
    return {name: json.loads((folder / "corpus" / name).read_text()) for name in names}


@given(st.data())
def test_corpora(folder, corpus, data):
    for name, valid in corpus.items():
        small = valid | {"counts": valid["counts"][:5]} if "counts" in valid else valid
        content = data.draw(st.one_of(mutated(small).map(as_json), damaged(as_json(small))))
        put(folder / "corpus" / name, content)
        for split in ("train", "validation"):
            shards = told(open_shards, folder / "corpus", split)
            assert shards is None or len(shards) > 0
        put(folder / "corpus" / name, as_json(valid))


@pytest.fixture(scope="module")
def one_encoder():
    """What is made of the vocabulary is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "WordEncoder", functools.cache(prepare.WordEncoder))
        yield


WORDS = ["the", "old", "mill", "was", "built", "by", "a", "team", "."]
ENGLISH = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)  # other texts are dropped
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=200)


@given(st.lists(ANY_TEXT | ENGLISH, max_size=5))
@example(["the mill was built by a team . " * 4])
def test_texts_of_corpora(folder, one_encoder, texts):
    source = open_source(f"lines:{put(folder / 'any.txt', chr(10).join(texts))}")
    shutil.rmtree(folder / "made", ignore_errors=True)
    state = told(prepare_corpus, folder / "made", [source], TOKENIZER, max_length=16)
    split = state and state["splits"]["train"]
    if split and split["sequences"]:  # what is told is what is there
        shards = open_shards(folder / "made", "train")
        assert (len(shards), sum(map(len, shards))) == (split["sequences"], split["tokens"])


# --- checkpoints --------------------------------------------------------------------------------

SHAPE = create_model_config("tiny", vocab_size=40, hidden_size=8, num_heads=2, intermediate_size=8)


@pytest.fixture(scope="module")
def model(folder):
    """A small classifier with its tokenizer, and its files' contents."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "##s"]
    original = folder / "original"
    DistilBERTForSequenceClassification(SHAPE).save_pretrained(original)
    put(original / "vocab.txt", "\n".join(words))
    put(original / "tokenizer_config.json", as_json({"tokenizer_class": "BertTokenizer"}))
    get_tokenizer(original).save_pretrained(original)
    tokens = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]", "lstrip": False}}
    put(original / "special_tokens_map.json", as_json(tokens))
    return {path.name: path.read_bytes() for path in original.iterdir()}


def predict_with(folder, model, changes):
    """From a folder with other files, None for no file, to labels, all the way."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "model").mkdir()
    for name, content in (model | changes).items():
        if content is not None:
            put(folder / "model" / name, content)
    rows = told(lambda: load_predictor(folder / "model")(["a fine film", "films"]))
    assert rows is None or [row["text"] for row in rows] == ["a fine film", "films"]
    return rows


def finite(rows):
    """Whether it is refused, or all that sound weights give are numbers."""
    values = [row.get("probability", row.get("score")) for row in rows or ()]
    return all(math.isfinite(value) for value in values)


def labelled(rows):
    """Whether it is refused, or every text has one of the labels, whatever the weights are."""
    return all(row["label"] in ("LABEL_0", "LABEL_1") for row in rows or ())


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
)
@given(data=st.data())
def test_json_of_checkpoints(folder, model, name, data):
    valid = json.loads(model[name])
    content = data.draw(st.one_of(mutated(valid).map(as_json), damaged(model[name])))
    assert finite(predict_with(folder, model, {name: content}))


SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings")
OTHERS = ("num_labels", "pad_token_id", "dropout", "qa_dropout", "initializer_range", "model_type")
VALUES = st.integers(-1, 9) | st.sampled_from(
    [10**5, 10**7, 10**9, 10**12, 10**30, 1.5, float("nan"), float("inf"), True, "mpnet", "bert"]
)


@given(st.dictionaries(st.sampled_from([*SIZES, *OTHERS]), VALUES, max_size=3))
def test_sizes_of_checkpoints(folder, model, changes):
    config = json.loads(model["config.json"]) | changes
    assert finite(predict_with(folder, model, {"config.json": as_json(config)}))


@given(st.data())
def test_vocabularies(folder, model, data):
    content = data.draw(damaged(model["vocab.txt"]))
    assert finite(predict_with(folder, model, {"vocab.txt": content, "tokenizer.json": None}))


@given(st.data())
def test_safetensors(folder, model, data):
    """The header, which says where each tensor is, and what the file says of itself."""
    content = model["model.safetensors"]
    end = 8 + int.from_bytes(content[:8], "little")
    header = data.draw(
        st.one_of(
            mutated(json.loads(content[8:end])).map(as_json),
            damaged(content[8:end]),
        )
    )
    length = data.draw(st.sampled_from([len(header), len(header) + 8, 0, 2**63, 10**8]))
    written = length.to_bytes(8, "little") + header + content[end:]
    assert labelled(predict_with(folder, model, {"model.safetensors": written}))


@pytest.fixture(scope="module")
def pickled(folder, model):
    """The weights as torch.save writes them, and as it did before 2020."""
    sinks = [io.BytesIO(), io.BytesIO()]
    for old, sink in enumerate(sinks):
        tensors = load_file(folder / "original" / "model.safetensors")
        torch.save(tensors, sink, _use_new_zipfile_serialization=not old)
    return [sink.getvalue() for sink in sinks]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
@given(data=st.data())
def test_pickled_weights(folder, model, pickled, old, data):
    content = data.draw(damaged(pickled[old]))
    changes = {"pytorch_model.bin": content, "model.safetensors": None}
    assert labelled(predict_with(folder, model, changes))


INDEX = {"metadata": {"total_size": 9}, "weight_map": {"a": "model-1.safetensors", "b": "../b"}}


@example(as_json({"weight_map": {"a": "model-1.safetensors", "b": "a" * 300}}))
@given(st.one_of(mutated(INDEX).map(as_json), damaged(as_json(INDEX))))
def test_indices_of_shards(folder, model, content):
    changes = {"model.safetensors": None, "model-1.safetensors": model["model.safetensors"]}
    changes |= {"model.safetensors.index.json": content}
    assert labelled(predict_with(folder, model, changes))


POSITION = {"identity": {"seed": 0}, "scheduler_epoch": 3, "result": {}, "param_groups": []}


@given(st.one_of(st.none(), mutated(POSITION).map(json.dumps), st.text(max_size=40)))
def test_positions_of_trainings(folder, position):
    metadata = {} if position is None else {"position": position.encode(errors="replace").decode()}
    save_file({"a": torch.zeros(1)}, folder / CHECKPOINT, metadata)
    found = told(read_position, folder)
    assert found is None or found.keys() >= POSITION.keys()


# --- the page's API -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(folder, model):
    compared = Comparison({"model": folder / "original"}, folder)
    compared._load(compared.models[0])
    app = create_app(compared)
    app.testing = True  # what is not told is raised
    return app.test_client()


BODIES = [
    {"text": "a fine film", "second": "films", "precision": "fp32"},
    {"question": "a?", "context": "a fine film", "precision": "int8"},
]
TYPES = ("application/json", "text/plain", "application/json; charset=utf-16", "")


@given(
    st.sampled_from(["/classify", "/answer", "/state", "/", "/static/../demo.py", "/%00", "/x"]),
    st.sampled_from(["POST", "GET", "PUT", "DELETE"]),
    st.sampled_from(TYPES[:1] * 5 + TYPES),
    st.sampled_from(BODIES).flatmap(
        lambda body: st.one_of(mutated(body).map(as_json), damaged(as_json(body)))
    ),
)
def test_requests(client, path, method, kind, body):
    found = client.open(path, method=method, data=body, content_type=kind)
    assert found.status_code < 500 or found.status_code == 503
    if found.status_code >= 400:
        (line,) = found.get_json().values()
        assert line and "\n" not in line
    elif method == "POST":
        (row,) = found.get_json()
        assert row["label"] in ("LABEL_0", "LABEL_1")
    assert "script-src 'self'" in found.headers["Content-Security-Policy"]
