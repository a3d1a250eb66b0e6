"""Files and folders appear whole, whoever else writes them; leftovers of killed runs go."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distilbert_kit.errors import UserError
from distilbert_kit.files import (
    MARK,
    add_files,
    cached_sha256,
    check_output_folder,
    check_unchanged,
    content_key,
    locked,
    logits_name,
    mark_files,
    replacing_file,
    replacing_folder,
    write_atomically,
    write_once,
)
from distilbert_kit.paths import CODE

WRITERS = 4


def race(write) -> None:
    """Run `write(number)` in several threads that all begin before any ends."""
    barrier, errors = threading.Barrier(WRITERS), []

    def run(number: int) -> None:
        try:
            write(number, barrier.wait)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors, errors


def test_writers_of_one_file_do_not_mix(tmp_path):
    """With a fixed temporary name they would write into each other's file."""

    def write(number, all_begun):
        with replacing_file(tmp_path / "f") as temporary:
            temporary.write_text(str(number) * 10)
            all_begun()
            assert temporary.read_text() == str(number) * 10

    race(write)
    assert len(set((tmp_path / "f").read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def written(folder):
    with replacing_folder(folder) as temporary:
        (temporary / "old").touch()
    return folder


def test_writers_of_one_folder_do_not_mix(tmp_path):
    written(tmp_path / "d")

    def write(number, all_begun):
        with replacing_folder(tmp_path / "d") as temporary:
            (temporary / "a").write_text(str(number))
            all_begun()
            (temporary / "b").write_text(str(number))

    race(write)
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"a", "b", MARK}
    assert (tmp_path / "d" / "a").read_text() == (tmp_path / "d" / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_first_of_several_writers_wins(tmp_path):
    write_once(tmp_path / "cache", b"first")
    write_once(tmp_path / "cache", b"second")
    assert (tmp_path / "cache").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_failed_replacement_keeps_the_old_folder(tmp_path):
    written(tmp_path / "d")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "d") as temporary:
        (temporary / "new").touch()
        1 / 0  # noqa: B018
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"old", MARK}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from distilbert_kit.files import *\n"
        "with replacing_folder(Path(sys.argv[1])) as t:\n    (t / 'x').touch(); os._exit(9)"
    )
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    subprocess.run([sys.executable, "-c", program, tmp_path / "d"], env=environment)
    (dead,) = tmp_path.iterdir()
    own = dead.with_name(f".{'d'}.notes.tmp")  # a user's file, not a name of ours
    own.touch()
    with replacing_folder(tmp_path / "d"):
        write_atomically(tmp_path / "e", "")  # another name
        with replacing_folder(tmp_path / "d") as inner:
            (inner / "y").touch()
    assert not dead.exists() and own.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"d", "e", own.name}


@pytest.mark.parametrize(("before", "kept"), [(True, "old"), (False, "new")])
def test_a_kill_between_the_two_renames_of_a_folder_loses_no_whole_one(tmp_path, before, kept):
    """The older of the two that are there comes back, even if the next run fails."""
    if before:
        written(tmp_path / "d")
    program = (
        "import os, sys; from pathlib import Path; from distilbert_kit import files\n"
        "rename = Path.rename\n"
        "def dying(path, target): os._exit(9) if target.name == 'd' else rename(path, target)\n"
        "Path.rename = dying\n"
        "with files.replacing_folder(Path(sys.argv[1])) as t:\n    (t / 'new').touch()"
    )
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    subprocess.run([sys.executable, "-c", program, tmp_path / "d"], env=environment)
    assert not (tmp_path / "d").exists() and len(list(tmp_path.iterdir())) == 1 + before
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "d"):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert {path.name for path in (tmp_path / "d").iterdir()} == {kept, MARK}


def test_a_folder_in_which_a_writer_was_killed_is_still_ours(tmp_path):
    """What it left beside a file, or beside the mark, is not taken for a user's."""
    with replacing_folder(tmp_path / "d") as folder:
        (folder / "config.json").touch()
    for name in ("README.md", "record.json"):
        program = (
            "import os, sys; from pathlib import Path; from distilbert_kit import files\n"
            "files._sync = lambda path: os._exit(9) if sys.argv[2] in path.name else None\n"
            "files.add_files(Path(sys.argv[1]), {sys.argv[2]: b'x'})"
        )
        environment = os.environ | {"PYTHONPATH": str(CODE)}
        subprocess.run([sys.executable, "-c", program, tmp_path / "d", name], env=environment)
    assert sum(path.suffix == ".tmp" for path in (tmp_path / "d").iterdir()) == 2
    (tmp_path / "d" / ".notes.md.123abc-7-1.tmp").touch()  # of a name that the kit never wrote
    with pytest.raises(UserError, match="notes"):
        check_output_folder(tmp_path / "d")
    (tmp_path / "d" / ".notes.md.123abc-7-1.tmp").unlink()
    with replacing_folder(tmp_path / "d"):
        pass
    assert [path.name for path in (tmp_path / "d").iterdir()] == [MARK]


def test_hash_of_a_changed_file_is_new(tmp_path):
    path: Path = tmp_path / "f"
    path.write_text("one")
    first = cached_sha256(path)
    path.write_text("another")
    assert cached_sha256(path) != first


def test_a_key_is_the_beginning_of_the_hash_of_sorted_json():
    """The records in git have such keys: made in another way, all of them would be stale."""
    whole = hashlib.sha256(b'{"a": 0.5, "b": [2, null]}').hexdigest()
    assert content_key({"b": [2, None], "a": 0.5}) == whole[:16]


def test_only_what_the_kit_made_is_replaced(tmp_path):
    """A folder of somebody else, a file in one of the kit's, an input, a link's target, `.`."""
    thesis = tmp_path / "keep" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("x")
    with pytest.raises(UserError, match=r"holds 'thesis.txt', which this kit did not write"):
        written(thesis.parent)
    model = written(tmp_path / "model")
    (model / "README.md").touch()  # the card, written later
    mark_files(model)
    written(model)
    (model / "runs").mkdir()
    (model / "runs" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds 'runs/notes.txt'"):
        written(model)
    assert thesis.read_text() == "x" and (model / "runs" / "notes.txt").exists()
    other = written(tmp_path / "other")
    for folder in (other, tmp_path):
        with pytest.raises(UserError, match="which this run reads; name a new folder"):
            check_output_folder(folder, other)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="a file"):
            written(place)
    with pytest.raises(UserError, match="the working folder or one above it"):
        check_output_folder(Path("."))
    link = tmp_path / "link"
    link.symlink_to(other)
    written(link)
    assert link.is_symlink() and (other / "old").exists()
    (other / MARK).write_text("{")
    with pytest.raises(UserError, match="which this kit did not write"):
        written(other)


BAD_MARKS = ("{", "[]", "{}", '{"files": [["old", "0"]]}', '{"files": {"old": 0}}')
OUTSIDE = ('{"files": {"/dev/zero": "0"}}', '{"files": {"a/../../dev/zero": "0"}}')


@pytest.mark.parametrize("content", BAD_MARKS + OUTSIDE)
def test_a_damaged_mark_is_told_and_nothing_is_added(tmp_path, content):
    folder = written(tmp_path / "d")
    (folder / MARK).write_text(content)
    for use in (lambda: add_files(folder, {"README.md": b"x"}), lambda: check_unchanged(folder)):
        with pytest.raises(UserError, match=r"damaged; delete .*, and make it again"):
            use()
    assert {path.name for path in folder.iterdir()} == {"old", MARK}


def test_a_mark_made_again_does_not_list_itself(tmp_path):
    folder = written(tmp_path / "d")
    (folder / "old").write_text("changed")
    mark_files(folder)
    check_unchanged(folder)
    written(folder)


def test_one_writer_at_a_time(tmp_path):
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match="another process is writing it"),
        locked(tmp_path / "out"),
    ):
        pass
    with locked(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_working_folder_is_locked_by_any_of_its_names(tmp_path, monkeypatch):
    """`prepare_corpus.py --output .`; the root is no folder of anybody."""
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "below/..", "../here"):
        with (
            locked(Path(name)),
            pytest.raises(UserError, match="another process is writing it"),
            locked(tmp_path / "here"),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    with (
        pytest.raises(UserError, match=r"^/: the root of the disk; name a folder in it"),
        locked(Path("/")),
    ):
        pass


def test_kept_logits_of_a_teacher_are_no_foreign_file(tmp_path):
    folder = written(tmp_path / "d")
    (folder / logits_name(content_key("teacher"))).touch()
    check_output_folder(folder)
    (folder / logits_name("of-mine")).touch()
    with pytest.raises(UserError, match=r"holds 'logits-of-mine\.safetensors'"):
        check_output_folder(folder)


@pytest.mark.parametrize("name", ["README.md", "record.json", "old"])
def test_a_file_of_ours_that_somebody_wrote_over_or_beside_stays(tmp_path, name):
    """A card written by hand, weights that a Trainer saved over ours."""
    folder = written(tmp_path / "d")
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds '{name}'"):
        written(folder)
    assert (folder / name).read_text() == "mine"


def test_a_pipe_in_a_folder_of_ours_is_not_waited_for(tmp_path):
    folder = written(tmp_path / "d")
    (folder / "old").unlink()
    os.mkfifo(folder / "old")
    with pytest.raises(UserError, match="holds 'old'"):
        check_output_folder(folder)
    with pytest.raises(UserError, match="old: not as it was written"):
        check_unchanged(folder)


def test_a_file_that_comes_while_the_work_is_done_stays(tmp_path):
    folder = written(tmp_path / "d")
    with pytest.raises(UserError, match=r"thesis\.txt"), replacing_folder(folder):
        (folder / "thesis.txt").write_text("mine")
    assert (folder / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_mount_point_is_told_before_the_work():
    with pytest.raises(UserError, match="a mount point"):
        check_output_folder(Path("/proc"))
