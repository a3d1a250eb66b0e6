"""The small study, made once for all faults."""

import pytest
from harness import Runner
from world import World


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Runs scripts in forks."""
    return Runner(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def world(tmp_path_factory, runner):
    """The small study."""
    return World(tmp_path_factory.mktemp("world") / "a folder", runner)
