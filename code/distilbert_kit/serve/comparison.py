"""Fine-tuned models side by side: the same input to each, in fp32 or int8, with times and sizes.

Loading runs beside the server: PyTorch's fp32 first, then the int8 graphs, which a process of its
own exports where the folder has none (the exporter patches PyTorch while others may be using it).
"""

import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import median

from scipy.special import softmax

from ..errors import UserError
from ..models.checkpoints import resolve_checkpoint, weight_files
from ..models.model import count_parameters
from .export import FILES, OnnxModel, count_onnx_parameters, save_onnx
from .prediction import Answerer, Classifier, Predictor, find_task, load_predictor

WAITING = 16  # requests inside at a time; the next one is refused at once
PATIENCE = 30.0  # seconds until a request gives up waiting for those before it
EXPORT = 1800.0  # seconds for the export of one model
ROUNDS = 4  # calls of each model, of which the median time is given
ENOUGH = 1.0  # seconds after which no further round begins
WINDOWS = 20  # parts of a context that are read: some 2,700 tokens
N_BEST = 20  # candidates that share the probability, as in BERT's run_squad.py
SHOWN = 3  # of them


class RefusedError(Exception):
    """What cannot be answered here, or not now; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Compared:
    """One of the models: what is loaded of it so far, by precision."""

    name: str
    folder: Path
    task: str
    parameters: int = 0
    predictors: dict[str, Predictor] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def add(self, precision: str, predictor: Predictor, *files: Path) -> None:
        """Make `predictor`, whose weights are in `files`, the one of a precision."""
        self.megabytes[precision] = round(sum(file.stat().st_size for file in files) / 1e6, 1)
        self.predictors[precision] = predictor


def answer(predictor: Answerer, question: str, context: str) -> dict:
    """The best answers of a model with probabilities: the softmax over its best candidates."""
    (row,) = predictor([question], [context], n_best=N_BEST)
    probabilities = softmax([found["score"] for found in row["answers"]]).tolist()
    answers = [
        found | {"probability": probability}
        for found, probability in zip(row["answers"], probabilities, strict=True)
    ]
    return {"answers": answers[:SHOWN], "truncated": row["truncated"]}


def classify(predictor: Classifier, text: str, second: str = "") -> dict:
    """The label of a text or a pair with all probabilities, or the score of a regression."""
    (row,) = predictor([(text, second)] if second.strip() else [text])
    return {name: value for name, value in row.items() if name != "text"}


def check_windows(predictor: Answerer, question: str, context: str) -> None:
    """Refuse what would take minutes: each window is a run of the model."""
    if (count := len(predictor.windows([question], [context]))) > WINDOWS:
        most = predictor.settings.max_length
        raise RefusedError(
            413,
            f"context: {count} windows of {most} tokens, at most {WINDOWS} are read; shorten it",
        )


def _export(folder: Path, target: Path) -> None:
    predictor = load_predictor(folder)
    try:
        save_onnx(predictor.model, target, predictor.tokenizer)
    except UserError as error:
        sys.exit(f"error: {error}")  # a line on stderr
    (target / FILES["fp32"]).unlink()  # as large as the weights, which answer in fp32


def in_turn(calls: dict[str, Callable[[], dict]]) -> dict[str, dict]:
    """What each call gives, with `milliseconds`: the median of a few rounds in changing order."""
    names, taken, rows = deque(calls), {name: [] for name in calls}, {}
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name in names:
            started = time.perf_counter()
            rows[name] = calls[name]()
            taken[name].append(1e3 * (time.perf_counter() - started))
        if time.perf_counter() - began > ENOUGH:
            break
        names.rotate(-1)
    return {name: {"milliseconds": round(median(taken[name]), 1)} | rows[name] for name in calls}


class Comparison:
    """Models by name, of one task or two; `load` fills them, `ask` puts an input to all of a task.

    Raises UserError at once for a folder without a fine-tuned model. `scratch` takes the exports.
    """

    def __init__(self, models: dict[str, str | Path], scratch: Path):
        self.models: list[Compared] = []
        for name, model in models.items():
            folder = resolve_checkpoint(model)
            self.models.append(Compared(name, folder, find_task(folder)))
        self.scratch, self.error, self.doing = scratch, "", "starting"
        self._places, self._turn = threading.BoundedSemaphore(WAITING), threading.Lock()

    def load(self) -> None:
        """Load every model in fp32, then in int8; what goes wrong with one is kept in `error`."""
        try:
            for model in self.models:
                self.doing = f"loading {model.name}"
                with self._keeping_error(model):
                    self._load(model)
            for number, model in enumerate(self.models):
                if "fp32" in model.predictors and "int8" not in model.predictors:
                    self.doing = f"making the int8 form of {model.name}"
                    with self._keeping_error(model):
                        self._quantise(model, self.scratch / str(number))
        except Exception as error:
            self.error = f"{self.doing} failed ({type(error).__name__}); see the terminal"
            raise
        finally:
            self.doing = ""

    @contextmanager
    def _keeping_error(self, model: Compared) -> Iterator[None]:
        try:
            yield
        except UserError as error:  # the page is read elsewhere: no folders of this machine
            said = str(error).replace(str(model.folder), model.name)
            self.error += f"; {said}" if self.error else said

    def _load(self, model: Compared) -> None:
        # The page is read elsewhere: no folders of this machine.
        predictor = replace(load_predictor(model.folder), name=model.name)
        if isinstance(predictor.model, OnnxModel):
            model.parameters = count_onnx_parameters(predictor.model.path)["parameters"]
            graphs = list(FILES)
        else:
            model.parameters = count_parameters(predictor.model)
            model.add("fp32", predictor, *weight_files(model.folder))
            graphs = ["int8"]
        for precision in graphs:
            if (file := model.folder / FILES[precision]).is_file():
                graph = replace(predictor, model=OnnxModel(model.folder, precision))
                model.add(precision, graph, file)

    def _quantise(self, model: Compared, target: Path) -> None:
        process = multiprocessing.get_context("spawn").Process(
            target=_export, args=(model.folder, target), daemon=True
        )
        # A terminal sends Ctrl-C to the export too: it inherits this mask, its parent ends it.
        resource_tracker.ensure_running()  # the first start of the tracker would undo the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.join(EXPORT)
        if process.exitcode != 0:
            process.kill()
            raise UserError(f"{model.name}: no int8 form could be made; fp32 works")
        graph = replace(model.predictors["fp32"], model=OnnxModel(target))
        model.add("int8", graph, target / FILES["int8"])

    def of(self, task: str) -> list[Compared]:
        """The models of a task."""
        return [model for model in self.models if model.task == task]

    def is_ready(self, task: str, precision: str = "fp32") -> bool:
        """Whether every model of the task is loaded in this precision."""
        models = self.of(task)
        return bool(models) and all(precision in model.predictors for model in models)

    def ask(self, task: str, precision: str, *texts: str) -> list[dict]:
        """What each model of a task says of the texts, with milliseconds and size.

        Raises UserError for input that the models refuse, RefusedError past the bounds above and
        for models that are not there.
        """
        if not self.of(task):
            raise UserError(f"no model for {task} is loaded; start demo.py with one")
        doing = self.doing  # before what is ready, which may be more by then
        if not self.is_ready(task, precision):
            if doing:
                raise RefusedError(503, f"the {precision} models are not ready yet; wait a little")
            if self.error and not all(model.predictors for model in self.of(task)):
                raise RefusedError(500, self.error)
            raise UserError(f"not every model has an {precision} form; ask for another")
        if not self._places.acquire(blocking=False):
            raise RefusedError(
                429, f"{WAITING} requests are waiting already; ask again in a moment"
            )
        try:
            if not self._turn.acquire(timeout=PATIENCE):
                raise RefusedError(503, f"no turn within {PATIENCE:.0f} s; ask again in a moment")
            try:  # one after the other: times are those of an idle machine
                function = answer if task == "question-answering" else classify
                predictors = {model.name: model.predictors[precision] for model in self.of(task)}
                for predictor in predictors.values():
                    if isinstance(predictor, Answerer):
                        check_windows(predictor, *texts)
                calls = {
                    name: partial(function, predictor, *texts)
                    for name, predictor in predictors.items()
                }
                rows = in_turn(calls)
            finally:
                self._turn.release()
        finally:
            self._places.release()
        return [
            {
                "model": model.name,
                "parameters": model.parameters,
                "megabytes": model.megabytes[precision],
            }
            | rows[model.name]
            for model in self.of(task)
        ]
