"""`make data` for a stranger: the hub and the archive's server stand-ins are real HTTP servers."""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from urllib.parse import parse_qs, urlparse

import pandas as pd
import pytest
import yaml
from test_weights import full_disk

import fetch_data
from distilbert_kit.data import fetching, weights
from distilbert_kit.data.questions import choose_questions, question_key
from distilbert_kit.data.sources import rows_sha256, sources
from distilbert_kit.data.wikipedia import article_split, build_articles, clean_article
from distilbert_kit.errors import UserError
from distilbert_kit.models.packaged import MPNET, Origin
from distilbert_kit.paths import CODE, DATA, ROOT

COMMIT = "0" * 40
ARCHIVE = "/wikiVisual/archive.tar.gz"


class Server(http.server.ThreadingHTTPServer):
    """A folder as the hub would serve it, OWNER/NAME/FILES, and `files` as another server would.

    What `datasets` asks the hub: a repository's commit and folders, and its files with their hash.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.files, self.asked = folder, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlparse(self.path).path
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if path in self.server.files:
            return self.answer(*self.server.files[path])
        if parts[0] == "datasets" and parts[3] == "resolve":
            return self.send_file(self.server.folder.joinpath(*parts[1:3]), parts[5:])
        if parts[:2] == ["api", "datasets"]:
            return self.describe(self.server.folder.joinpath(*parts[2:4]), parts[4:], asked)
        self.answer(b"", status=404)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def send_file(self, repository, parts):
        file, headers = repository.joinpath(*parts), {"X-Repo-Commit": COMMIT}
        if not file.is_file():
            return self.answer(b"", {"X-Error-Code": "EntryNotFound", **headers}, 404)
        content = file.read_bytes()
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(content, headers)

    def describe(self, repository, parts, asked):
        if not repository.is_dir():
            return self.answer(b"", {"X-Error-Code": "RepoNotFound"}, 404)
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(repository).as_posix(),
                "oid": COMMIT,
                "size": path.stat().st_size,
            }
            for path in sorted(repository.rglob("*"))
        ]
        if parts[:1] == ["tree"]:
            under = "/".join(parts[2:])
            found = [e for e in entries if e["path"].rpartition("/")[0] == under]
        elif parts[:1] == ["paths-info"]:
            wanted = parse_qs(asked.decode())["paths"]
            found = [e for e in entries if e["path"] in wanted]
        else:
            files = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            name = "/".join(repository.parts[-2:])
            found = {"id": name, "sha": COMMIT, "tags": [], "siblings": files}
        self.answer(json.dumps(found).encode(), {"Content-Type": "application/json"})

    def answer(self, content, headers=None, status=200, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def document(number, title, text):
    address = f"http://en.wikipedia.org/wiki?curid={number}"
    return f'<doc id="{number}" url="{address}" title="{title}">\n{title}\n\n{text}\n\n</doc>\n'


LONG = "A sentence that says something. " * 10
ARTICLES = {  # title: bucket of 1,000, worked out apart
    "Anarchism": 640,
    "A": 16,
    "Athenian democracy": 0,
    "Simon &amp; Garfunkel": 50,
}


def archive(files):
    """A .tar.gz as GitHub makes it: everything below one folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in {"README.md": "# Wiki", **files}.items():
            member = tarfile.TarInfo(f"wikiVisual-{COMMIT}/{name}")
            content = text.encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def article_files():
    documents = [document(n, title, LONG) for n, title in enumerate(ARTICLES, 1)]
    half = len(documents) // 2
    # Not in the order of their numbers, and a short one whose title is of the train split.
    first = "".join(documents[half:]) + document(9, "A", "Too short.")
    return {"text/AA/wiki_00": first, "text/AB/wiki_01": "".join(documents[:half])}


def questions(count):
    rows = []
    for number in range(count):
        answer = f"town{number}"
        context = f"From {answer} to {answer} it is far."
        spans = {"text": [answer], "answer_start": [context.rindex(answer)]}
        row = {"id": f"q{number}", "title": "Far", "context": context}
        rows.append(row | {"question": "From where?", "answers": spans})
    return rows


def of_hub(source, split):
    """Three rows of a split in the columns that data/sources.yaml lists."""
    if source["hub"] == "rajpurkar/squad":
        return questions(6)
    return [
        {column: i % 2 if column == "label" else f"{column} {split} {i}" for column in columns}
        for i in range(3)
        for columns in [source["columns"]]
    ]


@pytest.fixture
def world(tmp_path):
    """A hub with every data set of the list in small, an archive, and a data folder to fill."""
    server, data = Server(tmp_path / "hub"), tmp_path / "data"
    data.mkdir()
    listed = json.loads(json.dumps(sources()))
    configs = {}
    for source in listed.values():
        if "hub" not in source:
            continue
        for split, of in source["splits"].items():
            if "chosen_from" in of:
                continue
            rows = of_hub(source, split)
            of |= {"rows": len(rows), "sha256": rows_sha256(only(rows, source["columns"]))}
            config = source.get("config", "default")
            file = tmp_path / "hub" / source["hub"] / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(file)
            entry = {"split": split, "path": f"{config}/{split}-*"}
            configs.setdefault(source["hub"], {}).setdefault(config, []).append(entry)
    for hub, found in configs.items():
        card = {"configs": [{"config_name": c, "data_files": f} for c, f in found.items()]}
        (tmp_path / "hub" / hub / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    chosen = [4, 1, 1]
    keys = [
        question_key(r["question"], r["context"], r["answers"]["text"][0]) for r in questions(6)
    ]
    (data / "squad_train_subset4000.txt").write_text("".join(f"{keys[n]}\n" for n in chosen))
    subset = [
        {
            "id": f"subset-{number:05d}",
            "context": questions(6)[n]["context"],
            "question": "From where?",
            "answers": {"text": [f"town{n}"], "answer_start": [5]},  # the first of the two
        }
        for number, n in enumerate(chosen)
    ]
    listed["squad"]["splits"]["train_subset4000"] |= {"rows": 3, "sha256": rows_sha256(subset)}
    article = {"text": LONG.strip()}
    wiki = {
        "train": [
            {"id": 2, "title": "A"} | article,
            {"id": 4, "title": "Simon & Garfunkel"} | article,
        ],
        "validation": [{"id": 3, "title": "Athenian democracy"} | article],
    }
    listed["wikipedia"] |= {
        "archive": server.url + ARCHIVE,
        "files": 2,
        "splits": {s: {"rows": len(r), "sha256": rows_sha256(r)} for s, r in wiki.items()},
    }
    (data / "sources.yaml").write_text(yaml.safe_dump(listed))
    server.files[ARCHIVE] = (archive(article_files()),)
    yield World(server, data, tmp_path)
    server.shutdown()
    server.server_close()


def only(rows, columns):
    return [{column: row[column] for column in columns} for row in rows]


class World:
    def __init__(self, server, data, folder):
        self.server, self.data, self.folder = server, data, folder

    def fetch(self, *arguments, endpoint=None):
        """Exit status, what was printed and the errors of fetch_data.py, and the files made."""
        given = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DATA_DIR"))}
        given |= {"HF_ENDPOINT": endpoint or self.server.url, "HF_HOME": str(self.folder / "home")}
        command = [sys.executable, str(CODE / "fetch_data.py"), *map(str, arguments)]
        paths = os.pathsep.join((str(CODE), str(self.folder)))
        environment = given | {"DATA_DIR": str(self.data), "PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, lines

    def files(self):
        return {
            p.relative_to(self.data).as_posix() for p in self.data.rglob("*") if p.is_file()
        } - {
            "sources.yaml",
            "squad_train_subset4000.txt",
        }


def test_a_recipe_is_fetched_whole_and_only_once(world):
    status, printed, errors = world.fetch("--recipe", "study")
    assert (status, errors) == (0, [])
    glue = {f"glue/{task}/validation" for task in ("cola", "mrpc", "rte", "sst2", "stsb", "wnli")}
    glue |= {name.replace("validation", "train") for name in glue}
    others = {"imdb/train", "imdb/test", "squad/train_subset4000", "squad/validation"}
    expected = glue | others | {"wikipedia/train", "wikipedia/validation"}
    assert {line.partition(":")[0] for line in printed.splitlines()} == expected
    assert world.files() == {f"{name}.parquet" for name in expected | {"squad/train"}}
    subset = pd.read_parquet(world.data / "squad/train_subset4000.parquet")
    assert [answers["text"][0] for answers in subset["answers"]] == ["town4", "town1", "town1"]
    assert world.server.asked.count(f"GET {ARCHIVE}") == 1

    # Again: only what is damaged is fetched.
    path = world.data / "imdb" / "test.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    world.server.asked.clear()
    status, again, errors = world.fetch("--recipe", "study")
    assert (status, errors) == (0, [])
    damaged = [line for line in again.splitlines() if line not in printed.splitlines()]
    assert len(damaged) == 1 and "not a readable parquet file" in damaged[0]
    assert damaged[0].endswith("fetching it again")
    assert len(pd.read_parquet(path)) == 3
    assert not [a for a in world.server.asked if "datasets" in a and "imdb" not in a]
    assert f"GET {ARCHIVE}" not in world.server.asked


@pytest.mark.parametrize("fault", ["other rows", "no repository", "no network"])
def test_what_the_hub_does_not_give_is_one_line_and_no_file(world, fault):
    endpoint = None
    if fault == "other rows":
        file = next((world.folder / "hub" / "stanfordnlp").rglob("test-*"))
        pd.DataFrame([{"text": "another", "label": 0}] * 3).to_parquet(file)
        expected = "imdb/test, as fetched: content SHA-256 is"
    elif fault == "no repository":
        (world.folder / "hub" / "stanfordnlp").rename(world.folder / "elsewhere")
        expected = "imdb/test: not fetched from the hub"
    else:
        endpoint, expected = "http://127.0.0.1:9", "imdb/test: not fetched from the hub"
        impatient = "import time\ntime.sleep = lambda seconds: None\n"  # between tries: 23 s
        (world.folder / "sitecustomize.py").write_text(impatient)
    status, _, errors = world.fetch("--dataset", "imdb", endpoint=endpoint)
    assert status == 2 and len(errors) == 1 and errors[0].startswith(f"error: {expected}")
    assert world.files() == set()


@pytest.mark.parametrize("listed", [{}, {"revision": "0123abc"}])
def test_the_hub_is_read_at_the_commit_that_is_listed(monkeypatch, listed):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **options: asked.append(options))
    fetching._from_hub("imdb", {"hub": "stanfordnlp/imdb"} | listed, "test")
    assert asked == [{"split": "test", "revision": listed.get("revision")}]


def test_a_full_disk_is_not_taken_for_a_network_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        fetching._from_hub("imdb", {"hub": "stanfordnlp/imdb"}, "test")
    monkeypatch.setattr("huggingface_hub.snapshot_download", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        weights._from_hub(MPNET, tmp_path / "weights")


def test_damaged_weights_in_the_cache_of_the_hub_are_named_where_they_lie(tmp_path, monkeypatch):
    """A link to them, or a copy that is gone, would not say what is to be deleted."""
    snapshot, content = tmp_path / "snapshot", (tmp_path / "content").resolve()
    snapshot.mkdir()
    content.write_bytes(b"damaged")
    (snapshot / "model.safetensors").symlink_to(content)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(UserError, match=rf"^{content}: SHA-256 .*; delete it and run the same"):
        weights._from_hub(MPNET, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_what_pip_says_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    origin = Origin("hub", "main", "no-such-package-{:03d}", "1", 1, 1, "0" * 64)
    with pytest.raises(UserError, match=r"nor the package index has it \(pip: .*-001==1\); check"):
        weights._download(origin, tmp_path)


def test_articles_of_a_copy(world):
    """An archive and a folder give what the server gives; a folder that is not whole is refused."""
    copy = world.folder / "copy.tar.gz"
    copy.write_bytes(world.server.files[ARCHIVE][0])
    assert world.fetch("--dataset", "wikipedia", "--from", copy)[0] == 0
    assert f"GET {ARCHIVE}" not in world.server.asked
    with tarfile.open(copy) as tar:
        tar.extractall(world.folder, filter="data")
    clone = world.folder / f"wikiVisual-{COMMIT}"
    rows = build_articles(clone, 2)
    assert [row["id"] for row in rows["train"]] == [2, 4]
    for split, found in rows.items():
        made = pd.read_parquet(world.data / "wikipedia" / f"{split}.parquet")
        assert made.to_dict("records") == found
    (clone / "text/AB/wiki_01").unlink()
    with pytest.raises(UserError, match=r"1 article files .* expected 2"):
        build_articles(clone, 2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda whole: (whole[:-40],), "not read to its end"),
        (lambda whole: (whole[:200], None, 200, len(whole)), "not read to its end"),
        (lambda whole: (whole[:3],), "not read to its end"),
        (lambda whole: (b"<html>", None, 200), "not read to its end"),
        (lambda whole: (b"", None, 404), "the server answers 404 .*; give a copy with --from"),
        (lambda whole: (archive({"text/AA/wiki_00": ""}),), "1 article files"),
    ],
)
def test_a_broken_archive_is_named(world, answer, expected):
    world.server.files[ARCHIVE] = answer(archive(article_files()))
    with pytest.raises(UserError, match=f"{ARCHIVE}: {expected}"):
        build_articles(world.server.url + ARCHIVE, 2)


def test_another_copy_leaves_no_file(world):
    other = {name: text.replace("something", "else") for name, text in article_files().items()}
    copy = world.folder / "copy.tar.gz"
    copy.write_bytes(archive(other))
    status, _, errors = world.fetch("--dataset", "wikipedia", "--from", copy)
    assert status == 2 and len(errors) == 1
    assert "wikipedia/train, as fetched: content SHA-256 is" in errors[0]
    assert world.files() == set()


def test_arguments_that_do_not_fit(monkeypatch, capsys):
    for arguments, expected in (
        (("--from", "x"), "--from needs --dataset"),
        (("--dataset", "imdb", "--from", "x"), "imdb: it has no archive"),
        (("--dataset", "imbd"), "no data set 'imbd': choose from"),
    ):
        monkeypatch.setattr(sys, "argv", ["fetch_data.py", *arguments])
        with pytest.raises(SystemExit, match="2"):
            fetch_data.main()
        assert expected in capsys.readouterr().err
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        build_articles("nowhere", 2)


def test_articles_go_where_the_hash_of_their_title_says():
    for title, bucket in ARTICLES.items():
        title = title.replace("&amp;", "&")
        assert int(hashlib.sha256(title.encode()).hexdigest()[:8], 16) % 1000 == bucket, title
        split = "validation" if bucket <= 4 else "train" if 10 <= bucket <= 207 else None
        assert article_split(title) == split


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (" a \n\n\nb\n", "a\nb"),
        ("23&nbsp;years\xa0on &lt;b&gt;bold&lt;/b&gt; R&amp;D", "23 years on bold R&D"),
        ("</dl>\none <br /> two", "one  two"),
        ("a < b and <span\nclass> c", "a < b and <span\nclass> c"),  # a tag is of one line
        (f"x <{'y' * 201}> z", f"x <{'y' * 201}> z"),
        (f"x <{'y' * 200}> z", "x  z"),
    ],
)
def test_articles_are_cleaned(text, clean):
    assert clean_article(text) == clean


def test_the_committed_keys_choose_the_subset():
    listed = sources()["squad"]["splits"]["train_subset4000"]
    keys = (ROOT / "data" / listed["chosen_by"]).read_text().split()
    assert len(keys) == listed["rows"] and len(set(keys)) == listed["rows"] - 1
    assert {len(key) for key in keys} == {12}
    path = DATA / "squad" / "train_subset4000.parquet"
    if not path.is_file():
        pytest.skip("needs SQuAD in DATA_DIR")
    rows = pd.read_parquet(path)
    rows["answers"] = [{"text": a["text"].tolist(), "answer_start": [999]} for a in rows["answers"]]
    shuffled = rows.sample(frac=1, random_state=0).to_dict("records")
    chosen = only(choose_questions(shuffled, keys), sources()["squad"]["columns"])
    assert rows_sha256(chosen) == listed["sha256"]


def test_a_chosen_question_that_is_not_there():
    with pytest.raises(UserError, match="1 of 2 chosen questions are not there"):
        key = question_key("From where?", questions(1)[0]["context"], "town0")
        choose_questions(questions(1), [key, "0" * 12])
