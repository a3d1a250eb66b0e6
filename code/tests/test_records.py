"""Records: what is written, what is current, what is refused."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import extract_student
import finetune
from distilbert_kit.data.sources import DataUsed
from distilbert_kit.errors import UserError
from distilbert_kit.files import content_key, write_atomically
from distilbert_kit.paths import CODE
from distilbert_kit.study import cells as experiment, recipes, records
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import Input, is_current, read_record, recording

PROVENANCE = {
    "stage": "finetune",
    "cell": {"model": "teacher"},
    "scale": "embedded",
    "recipe": "quick",
    "settings": {"epochs": 1},
}


def write(path, **metrics):
    with recording(path, **PROVENANCE) as draft:
        draft.metrics = metrics
    return read_record(path)


def test_round_trip_and_deterministic_part(tmp_path):
    first = write(tmp_path / "a.json", accuracy=0.5)
    second = write(tmp_path / "b.json", accuracy=0.5)
    assert first.model_dump(exclude={"measured"}) == second.model_dump(exclude={"measured"})
    assert first.metrics == {"accuracy": 0.5}
    text = (tmp_path / "a.json").read_text()
    assert str(CODE.parent) not in text and str(tmp_path) not in text
    assert is_current(tmp_path / "a.json", first.key)
    assert not is_current(tmp_path / "a.json", content_key("other"))
    assert not is_current(tmp_path / "missing.json", first.key)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one commit in a repository of its own, and its git command."""
    root = tmp_path / "project"
    if shutil.which("git") is None:
        pytest.skip("no git here")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True)

    for name in ("code/distilbert_kit/study/records.py", "data/file", "results/file"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("before")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    monkeypatch.setattr(records, "ROOT", root)
    return root


def test_changed_code_makes_a_record_dirty_and_changed_results_do_not(tmp_path, project):
    (project / "results" / "file").write_text("after")  # another run's record
    (project / "data" / "new").touch()  # checked by its own hash
    clean = write(tmp_path / "a.json").measured
    assert clean.git_dirty is False and len(clean.git_commit) == 40
    (project / "code" / "new.py").touch()  # untracked, but it runs
    assert write(tmp_path / "b.json").measured.git_dirty is True
    (project / "code" / "new.py").unlink()
    (project / "data" / "file").write_text("after")
    assert write(tmp_path / "c.json").measured.git_dirty is True


def test_a_commit_made_during_a_run_is_not_that_of_its_code(tmp_path, project):
    before = records.git_state()["git_commit"]
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    with recording(tmp_path / "a.json", **PROVENANCE):
        commit = ["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "new"]
        subprocess.run(commit, cwd=project, check=True)
    assert records.git_state()["git_commit"] != before
    assert read_record(tmp_path / "a.json").measured.git_commit == before


def test_what_git_is_asked_writes_nothing(project):
    """It would take the lock of the index, which stays when a run is stopped at that moment."""
    os.utime(project / "data" / "file", (1e9, 1e9))  # git would note that it is the same
    index = project / ".git" / "index"
    before = index.stat()
    assert records.git_state()["git_dirty"] is False
    after = index.stat()  # a new file would have replaced it
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_changes_are_unknown_where_git_cannot_look_for_them(project):
    objects = project / ".git" / "objects"
    objects.rename(objects.with_name("away"))
    objects.mkdir()  # the commit has a name, but nothing can be compared with it
    found = records.git_state()
    assert len(found["git_commit"]) == 40 and found["git_dirty"] is None


@pytest.mark.parametrize("without", ["repository", "git", "own repository"])
def test_without_git_commit_and_changes_are_unknown(tmp_path, project, monkeypatch, without):
    if without == "repository":
        (project / ".git").rename(tmp_path / "away")
    elif without == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:  # unpacked inside of somebody's repository
        (project / "unpacked").mkdir()
        monkeypatch.setattr(records, "ROOT", project / "unpacked")
    found = write(tmp_path / "a.json").measured
    assert found.git_commit is None and found.git_dirty is None


PAGE = "https://example.org/group/project"


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        (f"{PAGE}.git", PAGE),
        (f"{PAGE}/", PAGE),
        ("https://user:secret@example.org/group/project", PAGE),
        ("git@example.org:group/project.git", PAGE),
        ("ssh://git@example.org/group/project.git", PAGE),
        ("/a/folder", ""),
        ("file:///a/folder", ""),
        ("../a folder", ""),
    ],
)
def test_the_page_of_the_repository_is_that_of_its_remote(project, remote, page):
    assert records.repository_address() == ""
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=project, check=True)
    assert records.repository_address() == page


def test_a_repository_around_the_project_is_not_its_own(project, monkeypatch):
    subprocess.run(["git", "remote", "add", "origin", PAGE], cwd=project, check=True)
    (project / "unpacked").mkdir()
    monkeypatch.setattr(records, "ROOT", project / "unpacked")
    assert records.repository_address() == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema_version": 2', '"schema_version": 99'),
        lambda text: text.replace('"stage"', '"stagge"'),
        lambda text: "",
    ],
)
def test_damaged_records_are_refused_and_not_current(tmp_path, damage):
    key = write(tmp_path / "a.json").key
    path = tmp_path / "a.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match="not a valid record"):
        read_record(path)
    assert not is_current(path, key)


def test_failed_run_is_counted_and_bad_input_is_not(tmp_path):
    path = tmp_path / "cell.json"
    with pytest.raises(RuntimeError), recording(path, **PROVENANCE):
        raise RuntimeError("it broke\nhere and there")
    with pytest.raises(UserError), recording(path, **PROVENANCE):
        raise UserError("a typing mistake")
    assert not path.exists()
    (failed,) = (tmp_path / "failed").iterdir()
    record = read_record(failed)
    assert record.status == "failed" and record.error == "RuntimeError: it broke"
    assert not is_current(failed, record.key)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (open, "FileNotFoundError: No such file or directory: x"),
        (load_file, "FileNotFoundError"),
        (lambda path: os.stat(9999), "OSError: Bad file descriptor: 9999"),
    ],
)
def test_a_failed_run_names_no_folder_of_the_machine(tmp_path, read, said):
    with pytest.raises(OSError), recording(tmp_path / "cell.json", **PROVENANCE):
        read(tmp_path / "secret project" / "x")
    (failed,) = (tmp_path / "failed").iterdir()
    assert read_record(failed).error == said


def test_the_key_follows_what_was_read(tmp_path):
    keys = set()
    for sha256 in ("1" * 64, "2" * 64):
        with recording(tmp_path / "a.json", **PROVENANCE) as draft:
            draft.data.append(DataUsed(name="mine.csv/train", rows=3, sha256=sha256))
        keys.add(read_record(tmp_path / "a.json").key)
    given = [Input(name="checkpoint:mine", content=f"sha256:{'3' * 64}")]
    with recording(tmp_path / "a.json", **PROVENANCE, inputs=given) as draft:
        draft.data.append(DataUsed(name="mine.csv/train", rows=3, sha256=sha256))
    assert len(keys | {read_record(tmp_path / "a.json").key}) == 3


@pytest.mark.parametrize(("stop", "counts"), [(KeyboardInterrupt, True), (SystemExit, False)])
def test_a_stopped_run_is_counted_and_a_refusal_is_not(tmp_path, stop, counts):
    with pytest.raises(stop), recording(tmp_path / "cell.json", **PROVENANCE):
        raise stop
    assert (tmp_path / "failed").exists() == counts and not (tmp_path / "cell.json").exists()


@pytest.mark.parametrize(("rank", "writes"), [("0", True), ("1", False), ("2", False)])
def test_one_of_several_processes_writes_the_record(tmp_path, monkeypatch, rank, writes):
    monkeypatch.setenv("RANK", rank)
    with recording(tmp_path / "cell.json", **PROVENANCE):
        pass
    assert (tmp_path / "cell.json").exists() == writes


def test_a_record_without_a_key_has_that_of_its_cell_and_settings(tmp_path):
    keys = set()
    changes = [{"stage": "tune"}, {"stage_version": 2}, {"cell": {"model": "student"}}]
    for number, change in enumerate([{}, *changes, {"settings": {"epochs": 2}}]):
        with recording(tmp_path / f"{number}.json", **PROVENANCE | change):
            pass
        keys.add(read_record(tmp_path / f"{number}.json").key)
    assert len(keys) == 5
    assert 0 <= read_record(tmp_path / "0.json").measured.wall_seconds < 60


def test_the_command_of_a_record_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    inside, outside = CODE / "recipes" / "mine.yaml", tmp_path / "news.csv"
    words = ["/somewhere/code/finetune.py", "--recipe", str(inside), f"--csv={outside}", "a b"]
    words += ["--output", str(outside)]
    monkeypatch.setattr(sys, "argv", words)
    command = write(tmp_path / "a.json").measured.command
    assert command == (
        "python code/finetune.py --recipe code/recipes/mine.yaml --csv=news.csv 'a b' "
        "--output news.csv"
    )


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distilbert_kit.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_error_line_and_status_of_a_script(monkeypatch, capsys):
    arguments = ["--recipe", "quik", "--model", "m", "--task", "t"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        finetune.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: quik.yaml: no such recipe")


def test_read_only_results_are_one_line(monkeypatch, capsys):
    """`/proc` refuses new folders even to root."""
    monkeypatch.setattr(recipes, "RESULTS", Path("/proc/nowhere"))
    monkeypatch.setattr(sys, "argv", ["extract_student.py", "--model", "undistilled"])
    with pytest.raises(SystemExit, match="2"):
        extract_student.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "RESULTS_DIR" in line


def test_records_in_the_repository_are_valid():
    read = {}
    for path in (CODE.parent / "results").glob("*/*/*.json"):
        made_beside = path.parent.name == "corpus" and path.name in ("manifest.json", "counts.json")
        if path.parent.name not in ("tables", "models") and not made_beside:
            read[path] = read_record(path)
    others = [record for path, record in read.items() if path.parts[-3] != record.recipe]
    assert {record.stage for record in others} <= {"csv"}  # of no recipe


@pytest.mark.parametrize("name", ["study", "base"])
def test_records_in_the_repository_are_current(name):
    """A key that moves without need, by a word of code, throws weeks of computing away."""
    cells = experiment.evidence_cells(load_recipe(name))
    recorded = [cell for cell in cells if cell.record.exists()]
    if not recorded:
        pytest.skip(f"the records of {name} were removed")
    assert [cell.record for cell in recorded if cell.read_record().key != cell.key] == []
    assert all(cell.is_recorded() for cell in recorded)
