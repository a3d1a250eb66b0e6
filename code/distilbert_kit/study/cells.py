"""The experiment graph: a recipe becomes cells, and content decides which of them must run.

Light (no torch): the Snakefile imports it.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import cast

from ..data.tasks import get_task
from ..errors import UserError
from ..files import content_key
from ..paths import CODE
from .cell import BENCHMARK_STAGES, Cell
from .inputs import pinned_weights, public_name, public_source, source_input, weights_input
from .recipes import Recipe
from .records import Input, read_record
from .specs import Extract, finetune_name


def script_command(name: str, recipe: Recipe, *arguments: str) -> list[str]:
    return [sys.executable, str(CODE / name), "--recipe", recipe.argument, *arguments]


def _data_of(sources: list[str]) -> tuple[tuple[str, str], ...]:
    """(data set, split) of the sources that `data/sources.yaml` lists."""
    listed = (source.removeprefix("data:") for source in sources if source.startswith("data:"))
    parts = (name.rpartition("/") for name in listed)
    return tuple((dataset, split) for dataset, _, split in parts)


def _inputs_of(recipe: Recipe, sources: list[str]) -> tuple[Input, ...]:
    """The other sources, by content."""
    return tuple(given for source in sources if (given := source_input(recipe, source)))


def _corpus_settings(recipe: Recipe, include: set[str] | None = None) -> dict:
    corpus = recipe.require("corpus")
    settings = corpus.model_dump(mode="json", include=include)
    return settings | {"source": [public_source(source) for source in corpus.source]}


def _tokenizer_inputs(recipe: Recipe) -> tuple[Input, ...]:
    """The given weights whose tokenizer reads the corpus; none from scratch."""
    given = recipe.tokenizer_of(recipe.teacher)
    weights = {spec.weights for spec in recipe.models.values()}
    return (weights_input(recipe, given),) if given in weights else ()


def corpus_cell(recipe: Recipe) -> Cell:
    """Preparation of the recipe's corpus."""
    sources = recipe.require("corpus").source
    settings = _corpus_settings(recipe, {"source", "limit_tokens", "validation_fraction"})
    return Cell(
        recipe=recipe,
        stage="corpus",
        name="corpus",
        identity={"corpus": recipe.name},
        settings=settings,
        command=script_command("prepare_corpus.py", recipe),
        data=_data_of(sources),
        inputs=(*_inputs_of(recipe, sources), *_tokenizer_inputs(recipe)),
    )


_MODEL_SCRIPTS = {
    "extract": "extract_student.py",
    "pretrain": "pretrain.py",
    "distill": "distill.py",
}


def model_cell(recipe: Recipe, model: str, seed: int = 0) -> Cell | None:
    """The cell that makes a model of the recipe; None when its weights are given.

    Of a model that is made for each seed, it is the one from which fine-tuning with `seed` starts.
    Of a `task_distill` model it is that of its student: the teaching is a part of fine-tuning.
    """
    if model not in recipe.models:
        raise UserError(
            f"recipe {recipe.name} has no model {model!r}: choose from {', '.join(recipe.models)}"
        )
    spec = recipe.models[model]
    if spec.weights is not None:
        return None
    if spec.task_distill:
        return model_cell(recipe, spec.task_distill.student, seed)
    run = seed if spec.each_seed else 0
    stage = next(stage for stage in _MODEL_SCRIPTS if getattr(spec, stage))
    settings = getattr(spec, stage).model_dump(mode="json")
    parents = [cell for parent in spec.parents if (cell := model_cell(recipe, parent, run))]
    weights = {name: given for name in spec.parents if (given := recipe.models[name].weights)}
    settings |= {"weights": {name: public_name(given) for name, given in weights.items()}}
    if stage != "extract":
        parents.append(corpus_cell(recipe))
        training = recipe.require(stage) if stage == "pretrain" else recipe.distill_for(model)
        corpus = _corpus_settings(recipe)
        settings |= {
            "corpus": corpus | {"seed": corpus["seed"] + run},
            "training": training.model_dump(mode="json"),
        }
    arguments = ["--model", model, *(["--seed", str(run)] if run else [])]
    return Cell(
        recipe=recipe,
        stage=stage,
        name=f"{model}-{run}" if run else model,
        identity={"model": model} | ({"seed": run} if run else {}),
        settings=settings,
        command=script_command(_MODEL_SCRIPTS[stage], recipe, *arguments),
        parents=tuple(parents),
        inputs=tuple(weights_input(recipe, given) for given in weights.values()),
    )


def model_cells(recipe: Recipe, model: str) -> list[Cell]:
    """The cells that make a model of the recipe: one, or one for each seed."""
    seeds = recipe.seeds_of_model(model) if recipe.models[model].each_seed else [0]
    return [cell for seed in seeds if (cell := model_cell(recipe, model, seed))]


def checkpoint(recipe: Recipe, model: str, seed: int = 0) -> str | Path:
    """What `from_pretrained` reads for a model of the recipe; `seed` is that of `model_cell`.

    UserError unless it was made, with the present settings, parents and data.
    """
    if cell := model_cell(recipe, model, seed):
        return cell.made
    return pinned_weights(recipe, cast(str, recipe.models[recipe.body(model)].weights))


def with_given_teacher(cell: Cell, joint: str, teacher: str, sha256: str, settings: dict) -> Cell:
    """The same cell under a teacher of the command line: `<name>-<joint>-<teacher>`.

    Where another teacher of that name, or other `settings`, have a record already, a hash is added.
    """
    name = public_name(teacher)
    given = Input(name=f"teacher:{name}", content=f"sha256:{sha256}")
    renamed = dataclasses.replace(
        cell,
        name=f"{cell.name}-{joint}-{name.rpartition('/')[2]}",
        identity=cell.identity | {"teacher": name},
        settings=cell.settings | settings,
        inputs=(*cell.inputs, given),
    )
    if renamed.record.exists():
        there = read_record(renamed.record)
        if given not in there.inputs or not settings.items() <= there.settings.items():
            told = content_key([sha256, settings])[:8]
            return dataclasses.replace(renamed, name=f"{renamed.name}-{told}")
    return renamed


def distilled_from(cell: Cell, teacher: str, sha256: str, layers: list[int]) -> Cell:
    """The same distillation of a student that is cut from a teacher of the command line."""
    name = public_name(teacher)
    student = Extract(teacher=name, layers=layers).model_dump(mode="json")
    settings = {"teacher": name, "student": {"extract": student}, "weights": {name: name}}
    cell = dataclasses.replace(cell, parents=(corpus_cell(cell.recipe),), inputs=())
    return with_given_teacher(cell, "from", teacher, sha256, settings)


def teacher_cell(recipe: Recipe, model: str, task_name: str) -> Cell | None:
    """The fine-tuning that makes the task teacher of a model: one for all its seeds."""
    spec = recipe.models[model].task_distill
    return spec and finetune_cell(
        recipe, spec.teacher, task_name, recipe.seeds_of(spec.teacher, task_name)[0]
    )


def _finetune_settings(recipe: Recipe, model: str, task_name: str) -> dict:
    weights = recipe.models[recipe.body(model)].weights
    return recipe.shown_settings(task_name) | {"weights": weights and public_name(weights)}


def _trial_cell(
    recipe: Recipe, model: str, task: str, rate: float, held_out: float, seed: int
) -> Cell:
    parent, weights = model_cell(recipe, model), recipe.models[model].weights
    return Cell(
        recipe=recipe,
        stage="tune",
        name=f"{model}-{task}-{rate:g}",
        identity={"model": model, "task": task, "learning_rate": rate, "seed": seed},
        settings=_finetune_settings(recipe, model, task)
        | {"learning_rate": rate, "held_out": held_out},
        command=script_command(
            "tune.py", recipe, "--model", model, "--task", task, "--learning-rate", repr(rate)
        ),
        parents=(parent,) if parent else (),
        data=((get_task(task).dataset, recipe.train_split(task)),),
        inputs=(weights_input(recipe, weights),) if weights else (),
    )


def tuning_cells(recipe: Recipe, model: str) -> list[Cell]:
    """Trials of every learning rate on held-out training rows; none where nothing is tuned."""
    if (asked := recipe.tuning) is None:
        return []
    return [
        _trial_cell(recipe, model, task, rate, asked.held_out, asked.seed)
        for task, rate in itertools.product(asked.tasks, asked.learning_rates)
    ]


def held_out_cells(recipe: Recipe) -> list[Cell]:
    """The models of the recipe's key `held_out`, each on its tasks; none without that key."""
    if (asked := recipe.held_out) is None:
        return []
    rates = {task: recipe.finetune_for(task).learning_rate for task in asked.tasks}
    return [
        _trial_cell(recipe, model, task, rates[task], asked.fraction, asked.seed)
        for task, model in itertools.product(asked.tasks, asked.models)
    ]


def finetune_cell(recipe: Recipe, model: str, task_name: str, seed: int) -> Cell:
    """Fine-tuning of a model on a task with a seed, and its evaluation."""
    task, parent = get_task(task_name), model_cell(recipe, model, seed)
    spec, taught_by = recipe.models[model], teacher_cell(recipe, model, task_name)
    name = finetune_name(model, task_name, seed)
    arguments = ["--model", model, "--task", task_name, "--seed", str(seed)]
    teaches = model in recipe.task_teachers and seed == recipe.seeds_of(model, task_name)[0]
    if teaches or name in recipe.kept_names:
        arguments.append("--save")  # another cell reads the weights
    settings = _finetune_settings(recipe, model, task_name)
    weights = recipe.models[recipe.body(model)].weights
    if spec.task_distill:
        settings |= {"task_distill": spec.task_distill.model_dump(mode="json")}
    return Cell(
        recipe=recipe,
        stage="finetune",
        name=name,
        identity={"model": model, "task": task_name, "seed": seed},
        settings=settings,
        command=script_command("finetune.py", recipe, *arguments),
        parents=tuple(cell for cell in (parent, taught_by, *tuning_cells(recipe, model)) if cell),
        data=tuple((task.dataset, s) for s in (recipe.train_split(task_name), *task.eval_splits)),
        inputs=(weights_input(recipe, weights),) if weights else (),
        splits=tuple(task.eval_splits),
    )


def quantize_cell(recipe: Recipe, model: str, task_name: str, seed: int) -> Cell:
    """int8 and ONNX versions of a fine-tuned model, measured beside it."""
    parent, task = finetune_cell(recipe, model, task_name, seed), get_task(task_name)
    train_split, texts = recipe.train_split(task_name), {"max_length", "truncation"}
    arguments = ("--model", model, "--task", task_name, "--seed", str(seed))
    return Cell(
        recipe=recipe,
        stage="quantize",
        name=f"{parent.name}-int8",
        identity=parent.identity,
        settings=recipe.finetune_for(task_name).model_dump(include=texts)
        | {"train_split": train_split},
        command=script_command("quantize.py", recipe, *arguments),
        parents=(parent,),
        data=tuple((task.dataset, split) for split in (train_split, *task.eval_splits)),
    )


def cross_evaluation_cell(recipe: Recipe, model: str) -> Cell:
    """A model, fine-tuned on each of some tasks, on all of them that have the same labels."""
    asked = recipe.require("cross_evaluation")
    tested = list(dict.fromkeys((*asked.tasks, *asked.tested_on)))
    texts = {"max_length", "truncation", "precision"}
    return Cell(
        recipe=recipe,
        stage="cross_evaluate",
        name=model,
        identity={"model": model, "seed": asked.seed},
        settings={
            "tasks": asked.tasks,
            "tested_on": {t: recipe.finetune_for(t).model_dump(include=texts) for t in tested},
        },
        command=script_command("cross_evaluate.py", recipe, "--model", model),
        parents=tuple(finetune_cell(recipe, model, task, asked.seed) for task in asked.tasks),
        data=tuple(
            (get_task(t).dataset, split) for t in tested for split in get_task(t).eval_splits
        ),
    )


def _benchmark_key(stage: str) -> str:
    """A benchmark has a key of its name in the recipe, or shares the key `speed`."""
    return stage if stage in Recipe.model_fields else "speed"


def benchmark_stages(recipe: Recipe) -> list[str]:
    """The benchmark's stages that the recipe asks for."""
    return [stage for stage in BENCHMARK_STAGES if getattr(recipe, _benchmark_key(stage))]


def _training_speed_reads(recipe: Recipe) -> dict:
    reads = {
        "settings": {"finetune": recipe.finetune_for("sst2").model_dump(mode="json")},
        "data": (("glue/sst2", "train"), ("glue/sst2", "validation")),
    }
    if (weights := recipe.require("training_speed").weights) != "minilm":  # in the requirements
        reads["settings"] |= {"weights": public_name(weights)}
        reads["inputs"] = (weights_input(recipe, weights),)
    return reads


def _corpus_speed_reads(recipe: Recipe) -> dict:
    source = recipe.require("corpus_speed").source
    return {
        "settings": {"source": public_source(source)},
        "data": _data_of([source]),
        "inputs": _inputs_of(recipe, [source]),
    }


# What a stage reads besides its own settings. The others read STS-B dev only where it is here, so
# no key has it.
_BENCHMARK_READS = {
    "training_speed": _training_speed_reads,
    "distillation_speed": lambda recipe: {
        "settings": {"masking": _corpus_settings(recipe)},
        "parents": (corpus_cell(recipe),),
    },
    "corpus_speed": _corpus_speed_reads,
    "question_answering_speed": lambda _: {"data": (("squad", "validation"),)},
}


def benchmark_cell(recipe: Recipe, stage: str) -> Cell:
    """One of the benchmark's stages; UserError when the recipe has no key for it."""
    asked = recipe.require(_benchmark_key(stage))
    reads = _BENCHMARK_READS[stage](recipe) if stage in _BENCHMARK_READS else {}
    settings = asked.model_dump(mode="json")
    return Cell(
        recipe=recipe,
        stage="benchmark",
        name=stage,
        identity={"benchmark": stage},
        command=script_command("benchmark.py", recipe, "--stage", stage),
        **reads | {"settings": settings | reads.get("settings", {})},
    )


def evidence_cells(recipe: Recipe) -> list[Cell]:
    """Every cell whose record the report reads."""
    return [
        *([corpus_cell(recipe)] if recipe.corpus else []),
        *(
            cell
            for model, spec in recipe.models.items()
            if not spec.task_distill
            for cell in model_cells(recipe, model)
        ),
        *(
            cell
            for model in recipe.models
            if any(model in recipe.models_of(task) for task in recipe.tasks)
            for cell in tuning_cells(recipe, model)
        ),
        *held_out_cells(recipe),
        *(
            finetune_cell(recipe, model, task, seed)
            for seed in sorted({seed for m in recipe.models for seed in recipe.seeds_of_model(m)})
            for task in recipe.tasks
            for model in recipe.models_of(task)
            if seed in recipe.seeds_of(model, task)
        ),
        *(
            quantize_cell(recipe, model, asked.task, asked.seed)
            for asked in recipe.quantize
            for model in asked.models
        ),
        *(
            cross_evaluation_cell(recipe, model)
            for model in (recipe.cross_evaluation.models if recipe.cross_evaluation else ())
        ),
        *(benchmark_cell(recipe, stage) for stage in benchmark_stages(recipe)),
    ]


def plan_key(recipe: Recipe) -> str:
    """Hash of all that the recipe asks for: of every cell's key."""
    return content_key([cell.key for cell in evidence_cells(recipe)])


def demo_cells(recipe: Recipe) -> list[Cell]:
    """The fine-tunings whose models demo.py shows; UserError when the recipe names none."""
    if not recipe.demo:
        raise UserError(f"recipe {recipe.name} has no key demo: add it, or give folders to demo.py")
    return [
        finetune_cell(recipe, model, asked.task, asked.seed)
        for asked in recipe.demo
        for model in asked.models
    ]


def cells_to_run(recipe: Recipe, demo: bool = False) -> dict[str, Cell]:
    """Cells without a current record, and the parents whose weights they need, by key.

    With `demo` those without the weights that the demo shows, instead.
    """
    needed: dict[str, Cell] = {}

    def need(cell: Cell) -> None:
        if cell.key in needed:
            return
        needed[cell.key] = cell
        for parent in cell.parents:
            if not parent.is_ready():
                need(parent)

    for cell in demo_cells(recipe) if demo else evidence_cells(recipe):
        if not (cell.has_folder() if demo else cell.is_recorded()):
            need(cell)
    return needed
