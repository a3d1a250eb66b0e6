"""Files and folders appear whole, whoever else writes them; leftovers of killed runs go."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distilbert_kit.files import (
    known_sha256,
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


def test_writers_of_one_folder_do_not_mix(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()

    def write(number, all_begun):
        with replacing_folder(tmp_path / "d") as temporary:
            (temporary / "a").write_text(str(number))
            all_begun()
            (temporary / "b").write_text(str(number))

    race(write)
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"a", "b"}
    assert (tmp_path / "d" / "a").read_text() == (tmp_path / "d" / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_first_of_several_writers_wins(tmp_path):
    write_once(tmp_path / "cache", b"first")
    write_once(tmp_path / "cache", b"second")
    assert (tmp_path / "cache").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_failed_replacement_keeps_the_old_folder(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "d") as temporary:
        (temporary / "new").touch()
        1 / 0  # noqa: B018
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["old"]
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


def test_hash_of_a_changed_file_is_new(tmp_path):
    path: Path = tmp_path / "f"
    path.write_text("one")
    first = known_sha256(path)
    path.write_text("another")
    assert known_sha256(path) != first
