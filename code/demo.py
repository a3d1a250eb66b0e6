"""A page in the browser: fine-tuned models answer the same question side by side, with times.

    make demo RECIPE=study                            # the models of a recipe, made if need be
    python code/demo.py my-squad-model another-one    # folders or hub names, one kind of task

Question answering or classification, by the models' heads. Programs post the form's fields to
/predict and get JSON. Served on this machine only unless --host says otherwise.
"""

import argparse
import threading
from functools import partial
from pathlib import Path

import flask
import numpy as np
import waitress

from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.models.model import count_parameters
from distilbert_kit.serve.prediction import Answerer, Classifier, load_predictor
from distilbert_kit.study.cells import demo_cells
from distilbert_kit.study.measure import alternate
from distilbert_kit.study.recipes import load_recipe

LONGEST = 20_000  # characters of a field
N_BEST = 3
CALLS = 3  # timed, after the one that gives the answer: the first at a new length is slower
EXAMPLES = {
    "question": "When was the Eiffel Tower finished?",
    "context": "The Eiffel Tower stands on the Champ de Mars in Paris. Work on it began in January "
    "1887; it was finished in March 1889 and was the tallest structure in the world for 41 years, "
    "until the Chrysler Building in New York was topped out in 1930.",
    "text": "The plot is thin, but the actors are wonderful.",
    "second": "",
}


def read_form(fields: dict[str, str], names: tuple[str, ...]) -> list[str]:
    """The named fields without surrounding blanks; UserError for an empty or a very long one."""
    values = [fields.get(name, "").strip() for name in names]
    for name, value in zip(names, values, strict=True):
        if not value and name != "second":
            raise UserError(f"the {name} is empty: write one")
        if len(value) > LONGEST:
            raise UserError(f"the {name} has {len(value):,} characters: give at most {LONGEST:,}")
    return values


def ask(predictor: Answerer | Classifier, fields: dict[str, str]) -> dict:
    """What one model says of the form's fields."""
    if isinstance(predictor, Answerer):
        question, context = read_form(fields, ("question", "context"))
        (row,) = predictor([question], [context], n_best=N_BEST)
        return row | {"context": context}
    text, second = read_form(fields, ("text", "second"))
    (row,) = predictor([(text, second)] if second else [text])
    return row


def create_app(predictors: dict[str, Answerer | Classifier]) -> flask.Flask:
    """The page over models by name, all of one kind; UserError for a mixture of kinds."""
    first, *others = predictors
    kind = type(predictors[first])
    for name in others:
        if type(predictors[name]) is not kind:
            raise UserError(f"{name} and {first} do different things: give models of one kind")
    app, lock = flask.Flask(__name__), threading.Lock()
    app.config["MAX_CONTENT_LENGTH"] = 16 * LONGEST  # four bytes a character, percent-encoded
    sizes = {name: count_parameters(each.model) for name, each in predictors.items()}

    def ask_all(fields: dict[str, str]) -> list[dict]:
        calls = {name: partial(ask, predictor, fields) for name, predictor in predictors.items()}
        with lock:  # one visitor after the other: times are those of an idle machine
            rows = {name: call() for name, call in calls.items()}
            taken = alternate(calls, CALLS, warmup=0)
        return [
            {
                "model": name,
                "parameters": sizes[name] or None,  # an ONNX graph shows none
                "milliseconds": round(1e3 * float(np.median(taken[name])), 1),
            }
            | row
            for name, row in rows.items()
        ]

    @app.route("/", methods=["GET", "POST"])
    def page():
        fields, rows, problem = EXAMPLES, [], None
        if flask.request.method == "POST":
            fields = flask.request.form
            try:
                rows = ask_all(fields)
            except UserError as error:
                problem = str(error)
        shown = {"fields": fields, "rows": rows, "problem": problem}
        page = flask.render_template("demo.html", answers=kind is Answerer, calls=CALLS, **shown)
        return page, 400 if problem else 200

    @app.post("/predict")
    def predict():
        try:
            return flask.jsonify(ask_all(flask.request.form))
        except UserError as error:
            return flask.jsonify(error=str(error)), 400

    return app


def kept_models(name: str) -> dict[str, Path]:
    """Folders of the fine-tuned models that a recipe keeps for the demo, by their labels."""
    recipe, folders = load_recipe(name), {}
    for cell in demo_cells(recipe):
        if not cell.has_folder():
            raise UserError(f"{cell.name}: no weights here; run make demo RECIPE={recipe.argument}")
        folders[recipe.models[cell.identity["model"]].label] = cell.folder
    return folders


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="folders of fine-tuned models, or hub names")
    parser.add_argument("--recipe", default="quick", help="without models (default: quick)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    names = [Path(model).name for model in arguments.models]
    if len(set(names)) < len(names):
        names = arguments.models  # whole paths tell folders of one name apart
    chosen = dict(zip(names, arguments.models, strict=True))
    loaded = {n: load_predictor(m) for n, m in (chosen or kept_models(arguments.recipe)).items()}
    try:
        server = waitress.create_server(
            create_app(loaded), host=arguments.host, port=arguments.port
        )
    except OSError as error:
        raise UserError(
            f"{arguments.host}:{arguments.port}: {error.strerror}; choose another --port"
        ) from None
    print(f"http://{arguments.host}:{server.effective_port} (stop with Ctrl-C)", flush=True)
    server.run()


if __name__ == "__main__":
    main()
