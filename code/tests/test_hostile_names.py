"""Names that are paths, pipes, devices and links: nothing leaves its folder."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import yaml
from hostile import LONG, bounded

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.sources import read_sources
from distilbert_kit.data.weights import unpack
from distilbert_kit.data.wikipedia import build_articles
from distilbert_kit.errors import UserError
from distilbert_kit.foreign import read_json
from distilbert_kit.models.checkpoints import read_weights, resolve_checkpoint
from distilbert_kit.models.packaged import KNOWN_SHA256, MINILM, Origin
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record

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
    assert found.is_absolute() and KNOWN_SHA256[MINILM]
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
