"""A run that is stopped, at any moment and by anything, loses nothing and says why in one line.

Each row is a fault and a stage. The run is stopped again and again, by its own script started
again; when it has ended at last, all that it made is what an undisturbed run makes: weights,
shards, predictions and tables byte for byte, records but for times and machine.
"""

import os
import random
import signal
import subprocess
from contextlib import ExitStack

import pytest
from harness import Quota, Signal, Unprivileged
from hypothesis import settings
from nightly import NIGHTLY
from world import STEPS, made

STATUS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
LINE = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
SIGNALS = {"kill -9": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
# How often each stage is stopped in every run of the tests; nightly, all are and many times.
STOPS = {
    "kill -9": {"corpus": 2, "pretrain": 2, "extract": 1, "distill": 2, "finetune": 1, "claims": 1},
    "Ctrl-C": {"pretrain": 1},
    "SIGTERM": {"distill": 1, "finetune": 1},
    "quota": {"extract": 1, "finetune": 1},
    "full disk": {"pretrain": 1},
}
NIGHTS = {"kill -9": 50, "Ctrl-C": 20, "SIGTERM": 20, "quota": 20, "full disk": 10}
STAGES = [step for step in STEPS if step != "control"]
ROWS = [
    (fault, step, NIGHTS[fault] if NIGHTLY else few[step])
    for fault, few in STOPS.items()
    for step in (STAGES if NIGHTLY else few)
]


def test_the_counts_are_those_of_the_profile():
    assert (settings.get_current_profile_name() == "nightly") == NIGHTLY


def draw_fault(name, step, draw, ended, largest):
    """A fault at a random moment: at a change of a file, or at a time in between."""
    if name == "quota":
        return Quota(draw.randint(4096, largest - 1))
    number = SIGNALS[name]
    if draw.random() < 0.5:
        return Signal(number, change=draw.randint(1, ended.changes))
    return Signal(number, seconds=draw.uniform(0.01, ended.seconds))


def check_stopped(name, ended):
    """It said why, in one line, with the status that is promised."""
    if name in SIGNALS:
        assert ended.status == STATUS[SIGNALS[name]], ended.said
        line = LINE.get(SIGNALS[name])
        assert ended.said.splitlines() == ([line] if line else []), ended.said
    else:
        assert ended.status == 2 and len(ended.said.splitlines()) == 1, ended.said
        assert ended.said.startswith("error: ")


def check_whole(world, step, results):
    """All is there, as an undisturbed run leaves it, and nothing beside it."""
    ended = world.run(step, results)
    assert ended.status == 0, ended.said
    expected, found = world.after(step), made(results)
    assert found.keys() == expected.keys()
    assert [path for path in expected if found[path] != expected[path]] == []


@pytest.mark.parametrize(("fault", "step", "count"), ROWS)
def test_a_stopped_run_loses_nothing(world, tmp_path, fault, step, count):
    if fault == "full disk":
        return fill_disks(world, tmp_path, step, count)
    draw, stopped = random.Random(f"{fault} {step}"), 0
    ended, results = world.reach(step), world.before(step, tmp_path / "results")
    new = world.after(step).keys() - made(results).keys()
    largest = max((world.folder / f"after-{step}" / path).stat().st_size for path in new)
    for _ in range(20 * count):
        run = world.run(step, results, fault=draw_fault(fault, step, draw, ended, largest))
        if run.status:
            check_stopped(fault, run)
            stopped += 1
        else:  # it ended before: compare, and begin anew
            check_whole(world, step, results)
            results = world.before(step, results)
        if stopped == count:
            break
    assert stopped == count
    check_whole(world, step, results)


def fill_disks(world, tmp_path, step, count):
    """File systems that are full after some of what a stage writes."""
    if os.geteuid() or not _can_mount(tmp_path):
        pytest.skip("needs the right to mount")
    draw = random.Random(step)
    world.reach(step)
    sizes = [_size(world.folder / f"{when}-{step}") for when in ("before", "after")]
    for number in range(count):
        disk = tmp_path / str(number)
        disk.mkdir()
        room = sizes[0] + draw.randint(1 << 14, max(1 << 15, sizes[1] - sizes[0]))
        with ExitStack() as mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", disk], check=True)
            mounted.callback(subprocess.run, ["umount", "-l", disk], check=True)
            results = world.before(step, disk / "results")
            run = world.run(step, results)
            if run.status:
                check_stopped("full disk", run)
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            check_whole(world, step, results)


def _can_mount(folder):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True)
    return mounted.returncode == 0 and not subprocess.run(["umount", folder]).returncode


def _size(folder):
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


@pytest.mark.parametrize("step", STAGES if NIGHTLY else ["corpus", "extract", "claims"])
def test_a_read_only_folder_is_told_in_one_line(world, tmp_path, step):
    results = world.before(step, tmp_path / "results")
    before = made(results)
    folders = [results, *(path for path in results.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        run = world.run(step, results, fault=Unprivileged())
    finally:
        for folder in folders:
            folder.chmod(0o700)
    check_stopped("read-only", run)
    assert made(results) == before
    check_whole(world, step, results)
