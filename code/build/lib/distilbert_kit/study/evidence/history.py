"""What ran for a recipe in all, runs included that later ones replaced."""

from collections.abc import Iterable
from datetime import datetime

from ...foreign import read_yaml
from ...paths import EARLIER
from ..recipes import Recipe


def earlier_runs(recipe: Recipe) -> dict:
    """The recipe's part of `data/earlier_runs.yaml`; {} if it has none."""
    return read_yaml(EARLIER).get(recipe.name, {})


def machine_seconds(runs: Iterable[tuple[str, float]]) -> float:
    """Seconds in which anything ran, from each run's end (ISO 8601) and the seconds it took.

    Runs side by side count once: it is the length of the union of their intervals.
    """
    ends = [(datetime.fromisoformat(end).timestamp(), seconds) for end, seconds in runs]
    total, until = 0.0, float("-inf")
    for start, end in sorted((end - seconds, end) for end, seconds in ends):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
