"""What ran for a recipe: its records, failed runs, and runs that later ones replaced."""

from collections.abc import Iterable
from datetime import datetime

from ...foreign import read_yaml
from ...paths import EARLIER
from ..cells import benchmark_cell, benchmark_stages, evidence_cells
from ..recipes import Recipe
from ..records import Record, read_record


def present_records(recipe: Recipe) -> dict[str, Record]:
    """The records that are there, by "stage/cell"."""
    cells = evidence_cells(recipe)
    return {f"{c.stage}/{c.name}": c.read_record() for c in cells if c.record.exists()}


def failed_records(recipe: Recipe) -> dict[str, Record]:
    """The records of runs that crashed or were stopped, by "stage/cell-time"."""
    paths = sorted(recipe.folder.glob("*/failed/*.json"))
    return {f"{path.parts[-3]}/{path.stem}": read_record(path) for path in paths}


def csv_records(recipe: Recipe) -> dict[str, Record]:
    """The records of `distill_csv.py` that were put in the recipe's folder, by "csv/name"."""
    paths = sorted(recipe.folder.glob("csv/*.json"))
    return {f"csv/{path.stem}": read_record(path) for path in paths}


def benchmark_record(recipe: Recipe, stage: str) -> Record | None:
    """The record of a benchmark stage, None if it is not there or not part of the recipe."""
    if stage not in benchmark_stages(recipe):
        return None
    cell = benchmark_cell(recipe, stage)
    return cell.read_record() if cell.record.exists() else None


def finetune_records(recipe: Recipe) -> dict[str, Record]:
    """The records of fine-tuning that are there, by "finetune/cell"."""
    found = present_records(recipe)
    return {name: record for name, record in found.items() if record.stage == "finetune"}


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


def provenance(recipe: Recipe) -> dict:
    """Every record, failed runs, what is missing, data with hashes, machines, versions, compute."""
    found, failed = present_records(recipe), failed_records(recipe)
    earlier = earlier_runs(recipe)
    superseded = earlier.get("superseded", [])
    cells = {f"{cell.stage}/{cell.name}": cell for cell in evidence_cells(recipe)}
    everything = [*found.values(), *failed.values(), *csv_records(recipe).values()]
    data = {used.name: used.model_dump() for r in everything for used in r.data}
    machines, versions = [], []
    for record in everything:
        machine = {k: v for k, v in record.measured.machine.items() if k != "threads"}
        if machine not in machines:
            machines.append(machine)
        if record.measured.versions not in versions:
            versions.append(record.measured.versions)
    return {
        "records": [
            {
                "name": name,
                "key": record.key,
                "scale": record.scale,
                "current": cells[name].is_recorded(),
                "wall_seconds": record.measured.wall_seconds,
                "peak_memory_bytes": record.measured.peak_memory_bytes,
                "finished": record.measured.finished,
                "commit": record.measured.git_commit or "unknown",
                "dirty": record.measured.git_dirty,  # None: unknown
            }
            for name, record in found.items()
        ],
        "missing": [name for name in cells if name not in found],
        "failed": [
            {"name": name, "error": record.error, "wall_seconds": record.measured.wall_seconds}
            for name, record in failed.items()
        ],
        "wall_seconds": sum(record.measured.wall_seconds for record in found.values()),
        "failed_wall_seconds": sum(record.measured.wall_seconds for record in failed.values()),
        "superseded": {
            "runs": len(superseded),
            "wall_seconds": sum(run["wall_seconds"] for run in superseded),
            "read_until": earlier.get("read_until"),
        },
        "machine_seconds": machine_seconds(
            [
                *((r.measured.finished, r.measured.wall_seconds) for r in everything),
                *((run["finished"], run["wall_seconds"]) for run in superseded),
            ]
        ),
        **{key: earlier.get(key, []) for key in ("known_faults", "remarks")},
        "data": sorted(data.values(), key=lambda used: used["name"]),
        "machines": machines,
        "versions": versions,
    }
