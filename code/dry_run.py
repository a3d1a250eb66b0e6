"""Walk the whole path of a recipe in about a minute: tiny models, made-up data, every stage.

    make dry-run RECIPE=paper
    python code/dry_run.py --recipe my-recipe.yaml --keep /tmp/walk

The same scripts, notebooks and report as the recipe's own, on 16-wide stand-ins for its models and
those of the benchmarks, a few made-up rows for its data and texts, and a few updates of training,
with one seed. Teacher and student are fine-tuned on every task, other models on one of each kind.
The benchmarks of distillation and of corpus preparation are left out. It tells in advance whether
a recipe runs through; the figures that it prints mean nothing and are thrown away.
"""

import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

import yaml

from distilbert_kit.files import check_output_folder

ROWS = 24  # of every made-up split
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
SMALL = {"epochs": 1, "batch_size": 8, "batch_tokens": 1024}
FEW_UPDATES = 0.01  # epochs, for the embedded tasks: their rows are not made up
SHORT = {
    "classification": {"max_length": 144},
    "question_answering": {"max_length": 144, "stride": 32, "question_length": 32},
}
TINY_SPEED = {
    "speed": {"pairs": 2, "passes": 1, "lengths": [16], "length_repeats": 1, "file_order_pairs": 2},
    "shape_speed": {"pairs": 2, "passes": 1},
    "training_speed": {"examples": 16, "rounds": 1},
    "question_answering_speed": {"questions": 4, "rounds": 2},
    "latency": {
        "sizes": ["study"],
        "backends": ["torch_ours"],
        "lengths": [16],
        "batches": [1],
        "seconds": 0.001,
        "least_rounds": 1,
        "texts": 2,
        "text_length": 8,
    },
}
LEFT_OUT = ("distillation_speed", "corpus_speed")  # minutes even so; tests/test_benchmarks.py


def stand_in(weights: str, target: Path) -> str:
    """Write a random checkpoint of the depth and kind of `weights`; returns its folder.

    Weights on the hub that no preset is of are not fetched: they are taken for those of a BERT of
    12 layers. UserError for a folder that holds no model.
    """
    from distilbert_kit.models.checkpoints import resolve_checkpoint
    from distilbert_kit.models.config import PRESETS, create_model_config
    from distilbert_kit.models.hub_layout import read_config
    from distilbert_kit.models.model import DistilBERTForMaskedLM, DistilBERTModel
    from distilbert_kit.models.packaged import KNOWN_SHA256, is_hub_name
    from distilbert_kit.models.tokenizers import get_tokenizer

    named = {"minilm": "MiniLM-L6", "all-mpnet-base-v2": "mpnet-base"}
    if weights in named or is_hub_name(weights):
        preset = named.get(weights, weights.partition("@")[0].rsplit("/", 1)[-1])
        if preset not in PRESETS:
            weights = preset = "bert-base-uncased"
        config = create_model_config(preset, **NARROW)
    else:
        config = replace(read_config(resolve_checkpoint(weights)).shape, **NARROW)
    # The known weights are sentence encoders, published without a masked-LM head.
    kind = DistilBERTModel if weights in KNOWN_SHA256 else DistilBERTForMaskedLM
    kind(config).save_pretrained(target, get_tokenizer(weights))
    return str(target)


def few_tasks(content: dict, model: str) -> list[str]:
    """The first of a model's tasks of each kind, and those that another stage needs."""
    from distilbert_kit.data.tasks import get_task

    asked = content["models"][model].get("tasks")
    tasks = content["tasks"] if asked is None else asked
    first = {get_task(task).kind: task for task in reversed(tasks)}
    crossed = content.get("cross_evaluation", {})
    kept = {*first.values(), *(crossed["tasks"] if model in crossed.get("models", ()) else ())}
    return [task for task in tasks if task in kept]


def shrink(content: dict, folder: Path) -> dict:
    """The recipe with stand-ins for its models, one seed, and a few updates of every training."""
    from distilbert_kit.data.tasks import get_task, is_embedded

    small = content | {"name": f"{content['name']}-dry-run", "scale": "embedded"}
    small["seeds"] = content["seeds"][:1]
    small["task_seeds"] = {}
    if "tuning" in content:
        rates, tasks = (content["tuning"][key] for key in ("learning_rates", "tasks"))
        small["tuning"] |= {"learning_rates": rates[:2], "tasks": tasks[:1], "held_out": 0.25}
    for name, spec in content["models"].items():
        spec.pop("seeds", None)
        if "weights" in spec:
            weights = stand_in(spec["weights"], folder / "weights" / name)
            small["models"][name] = spec | {"weights": weights}
        if "shape" in spec.get("pretrain", {}):
            small["models"][name] = spec | {"pretrain": {"shape": "bert-tiny"}}
        if "distill" in spec:
            spec["distill"].pop("training", None)
        if name not in (content["teacher"], content["student"]):
            small["models"][name]["tasks"] = few_tasks(content, name)
    if "quantize" in content:
        small["quantize"] = content["quantize"][:1]
    if "corpus" in content:
        source = f"lines:{folder / 'texts.txt'}"
        small["corpus"] |= {"source": [source], "limit_tokens": 1000, "validation_fraction": 0.1}
    for stage in ("pretrain", "distill"):
        if stage in content:
            small[stage] |= SMALL | {"accumulation": min(2, content[stage].get("accumulation", 1))}
    small["finetune"] |= SMALL
    own = content.get("finetune_tasks", {})
    small["finetune_tasks"] = {
        task: own.get(task, {}) | SMALL | SHORT[get_task(task).kind] for task in content["tasks"]
    }
    for task in content["tasks"]:
        if is_embedded(get_task(task).dataset):
            small["finetune_tasks"][task] |= {"epochs": FEW_UPDATES}
    small |= {stage: tiny for stage, tiny in TINY_SPEED.items() if stage in content}
    return {key: value for key, value in small.items() if key not in LEFT_OUT}


def made_up_row(task, row: int, sentence: str) -> dict:
    """A row of a task: the same sentence in every text column, and a label or answer that fits."""
    texts = dict.fromkeys(task.text_columns, sentence)
    if task.kind == "question_answering":
        word = sentence.split()[-1]
        answers = {"text": [word], "answer_start": [sentence.rindex(word)]}
        return texts | {"id": str(row), "answers": answers}
    return texts | {task.label_column: row % task.num_labels if task.labels else row / ROWS}


def make_up_data(recipe, folder: Path) -> None:
    """Texts for a corpus, a few rows for every split that is read, and the list that says so."""
    import datasets

    from distilbert_kit.data import grammar, sources
    from distilbert_kit.data.tasks import TASKS, is_embedded
    from distilbert_kit.study.cells import evidence_cells

    made_up = [row["sentence"] for row in grammar.build_sentiment("train", 10 * ROWS)]
    texts = (". ".join(made_up[start::ROWS]) for start in range(ROWS))
    (folder / "texts.txt").write_text("\n".join(texts))
    sentences = made_up[:ROWS]
    by_dataset = {task.dataset: task for task in TASKS.values()}
    listed = {}
    wanted = {split for cell in evidence_cells(recipe) for split in cell.data}
    for dataset, split in sorted(wanted):
        if is_embedded(dataset):
            continue
        task = by_dataset[dataset]
        rows = [made_up_row(task, row, sentence) for row, sentence in enumerate(sentences)]
        path = folder / "data" / dataset / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
        splits = listed.setdefault(dataset, {"splits": {}})["splits"]
        splits[split] = {"rows": ROWS, "sha256": sources.rows_sha256(rows)}
    (folder / "data" / "sources.yaml").write_text(yaml.safe_dump(listed))


def prepare(name_or_file: str, folder: Path) -> Path:
    """Write the small recipe with weights and data into `folder`; returns its file."""
    from distilbert_kit.foreign import read_yaml
    from distilbert_kit.study.recipes import load_recipe, recipe_path

    load_recipe(name_or_file)  # tells what is wrong with it
    small = shrink(read_yaml(recipe_path(name_or_file)), folder)
    path = folder / f"{small['name']}.yaml"
    path.write_text(yaml.safe_dump(small, sort_keys=False))
    make_up_data(load_recipe(path), folder)
    return path


def run_cells(path: Path) -> None:
    """Run every cell of the small recipe in this process: the libraries are loaded once."""
    from tqdm.auto import tqdm

    from benchmarks import latency
    from distilbert_kit.study import measure
    from distilbert_kit.study.cells import evidence_cells
    from distilbert_kit.study.recipes import load_recipe

    measure.LARGEST = 64
    ordered = {}

    def add(cell) -> None:
        for parent in cell.parents:
            add(parent)
        ordered.setdefault(cell.key, cell)

    recipe = load_recipe(path)
    for cell in evidence_cells(recipe):
        add(cell)
    for configs in latency.SIZES.values():  # of all benchmarks
        configs |= {name: replace(config, **NARROW) for name, config in configs.items()}
    for cell in tqdm(ordered.values(), desc=recipe.name, unit="cell"):
        _, *sys.argv = cell.command
        runpy.run_path(sys.argv[0], run_name="__main__")


def publish(path: Path) -> None:
    """Notebooks, report and poster of the small recipe; the two PDFs are taken away again."""
    from distilbert_kit.errors import UserError
    from distilbert_kit.paths import CODE, ROOT
    from distilbert_kit.study.publication import DOCUMENTS, pdf_path

    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", CODE / "Snakefile"]
    snakemake += ["--config", f"recipe={path}", "--cores", "all", "--nolock", "--quiet", "rules"]
    try:
        if subprocess.run(snakemake, cwd=ROOT).returncode:
            raise UserError(
                f"recipe {path.stem}: notebooks or report fail; mend what is said above"
            )
    finally:
        for document in DOCUMENTS:
            pdf_path(document, path.stem).unlink(missing_ok=True)


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--keep", type=Path, help="a folder to keep what is made")
    parser.add_argument("--only-cells", action="store_true", help="no notebooks, no report")
    arguments = parser.parse_args()
    if arguments.keep:
        check_output_folder(arguments.keep)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        # The library reads both when it is imported: hence the imports in the functions.
        os.environ |= {"DATA_DIR": str(folder / "data"), "RESULTS_DIR": str(folder / "results")}
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "sources.yaml").touch()
        path = prepare(arguments.recipe, folder)
        run_cells(path)
        if not arguments.only_cells:
            publish(path)
    print(f"recipe {arguments.recipe}: every stage runs through")


if __name__ == "__main__":
    main()
