"""A small study whose stages run in seconds, and what each leaves when nothing disturbs it."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from harness import Ended, Runner
from test_distillation import tiny_teacher

from distilbert_kit.data.grammar import build_sentiment
from distilbert_kit.files import MARK
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES

TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "precision": "fp32", "checkpoint_every": 1}
OF_RECIPE = ("prepare_corpus", "extract_student", "pretrain", "distill", "finetune", "quantize")
# The stages in order, by the name of their row: a script and its arguments.
STEPS = {
    "corpus": ("prepare_corpus",),
    "pretrain": ("pretrain", "--model", "teacher"),
    "extract": ("extract_student", "--model", "cut"),
    "distill": ("distill", "--model", "distilled"),
    "finetune": ("finetune", "--model", "distilled", "--task", "sentiment", "--save"),
    "control": ("finetune", "--model", "cut", "--task", "sentiment"),
    "claims": ("claims",),
    "quantize": ("quantize", "--model", "distilled", "--task", "sentiment"),
    "csv": ("distill_csv", "--csv", "{folder}/texts.csv", "--output", "{results}/csv"),
}
STEPS["csv"] += ("--teacher", "{folder}/source", "--epochs", "1", "--max-length", "16")


def write_recipe(folder: Path, **changes) -> Path:
    """The recipe of the small study, with changes."""
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {
        "name": "tiny",
        "corpus": {"source": [f"lines:{folder / 'dump.txt'}"], "validation_fraction": 0.1},
        "pretrain": TRAINING | {"epochs": 0.6},
        "distill": TRAINING | {"epochs": 0.6},
        "demo": [],
        "quantize": [{"models": ["distilled"], "task": "sentiment"}],
        "models": {
            "source": {"label": "s", "weights": str(folder / "source"), "tasks": []},
            "teacher": {"label": "t", "pretrain": {"start": "source"}, "tasks": []},
            "cut": {"label": "c", "extract": {"teacher": "teacher", "layers": [0, 2]}},
            "distilled": {"label": "d", "distill": {"teacher": "teacher", "student": "cut"}},
        },
        "teacher": "cut",
        "student": "distilled",
    }
    content["finetune"] |= {"epochs": 0.02, "max_length": 24, "precision": "fp32"}
    content["speed"] |= {"lengths": [8], "length_repeats": 1}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def _write_inputs(folder: Path) -> None:
    rows = build_sentiment("train", 150)
    texts = [row["sentence"] for row in rows]
    lines = [". ".join(texts[i : i + 3]) for i in range(0, len(texts), 3)]
    (folder / "dump.txt").write_text("\n".join(lines))
    tiny_teacher(dropout=0.1).save_pretrained(folder / "source", get_tokenizer())
    table = pd.DataFrame({"text": texts, "label": [row["label"] for row in rows]})
    table.drop_duplicates().head(60).to_csv(folder / "texts.csv", index=False)
    write_recipe(folder)


def made(results: Path) -> dict[str, object]:
    """What equal runs leave alike below a folder, by path: bytes, of records what they promise."""
    found: dict[str, object] = {}
    for path in sorted(path for path in results.rglob("*") if path.is_file()):
        name = path.relative_to(results).as_posix()
        if "/failed/" in name or path.name == MARK or path.suffix == ".lock":
            continue  # stopped runs are counted; hashes of times; a lock that nobody holds
        content = path.read_bytes()
        if path.suffix == ".json" and b'"measured"' in content:
            record = json.loads(content)
            found[name] = {k: v for k, v in record.items() if k not in ("measured", "sha256")}
        elif path.name == "README.md":
            found[name] = re.sub(rb"(?m)^- (finished|commit|command).*$", b"", content)
        else:
            found[name] = content
    return found


@dataclass
class World:
    """Inputs, and for each stage the results before it and how its undisturbed run went."""

    folder: Path
    runner: Runner

    def __post_init__(self) -> None:
        self.folder.mkdir()
        _write_inputs(self.folder)
        self.ended: dict[str, Ended] = {}
        self.results = self.folder / "whole"

    def words(self, step: str, results: Path) -> list[str]:
        """Script and arguments of a stage that writes to `results`."""
        script, *words = (w.format(folder=self.folder, results=results) for w in STEPS[step])
        recipe = () if script == "distill_csv" else ("--recipe", str(self.folder / "tiny.yaml"))
        return [script, *recipe, *words]

    def run(self, step: str, results: Path, **options) -> Ended:
        """Run a stage."""
        return self.runner.run(*self.words(step, results), results=results, **options)

    def reach(self, step: str) -> Ended:
        """Run all stages up to this one undisturbed, once; returns how this one went."""
        for name in STEPS:
            if name not in self.ended and (name not in ("quantize", "csv") or name == step):
                before = self.folder / f"before-{name}"
                shutil.copytree(self.results, before) if self.results.exists() else before.mkdir()
                self.ended[name] = ended = self.run(name, self.results)
                assert ended.status == 0, ended.said
                shutil.copytree(self.results, self.folder / f"after-{name}")
            if name == step:
                return self.ended[name]
        raise KeyError(step)

    def before(self, step: str, place: Path) -> Path:
        """A copy of the results as they were before a stage."""
        self.reach(step)
        shutil.rmtree(place, ignore_errors=True)
        return shutil.copytree(self.folder / f"before-{step}", place)

    def after(self, step: str) -> dict[str, object]:
        """What there was after an undisturbed run of a stage."""
        self.reach(step)
        return made(self.folder / f"after-{step}")
