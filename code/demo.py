"""A page in the browser: fine-tuned models answer the same question side by side, with times.

    make demo RECIPE=study                            # the models of a recipe, made if need be
    python code/demo.py my-squad-model another-one    # folders or hub names
    python code/demo.py my-squad-model --check        # starts, answers one request, stops

Question answering and classification, by the models' heads, in fp32 and int8. Programs post JSON
to /answer and /classify; /openapi.json describes them. Served on this machine only unless --host
says otherwise.
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point, refuse_options

from distilbert_kit.errors import UserError
from distilbert_kit.serve.app import create_app
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.export import FILES
from distilbert_kit.serve.server import create_server
from distilbert_kit.study.cells import demo_cells
from distilbert_kit.study.recipes import load_recipe

CHECKS = {
    "question-answering": ("answer", {"question": "Where is it?", "context": "It is in Paris."}),
    "text-classification": ("classify", {"text": "The actors are wonderful."}),
}


def kept_models(name: str) -> dict[str, Path]:
    """Folders of the fine-tuned models that a recipe keeps for the demo, by label and task."""
    recipe, folders = load_recipe(name), {}
    for cell in demo_cells(recipe):
        if not cell.has_folder():
            raise UserError(f"{cell.name}: no weights here; run make demo RECIPE={recipe.argument}")
        name = f"{recipe.models[cell.identity['model']].label}, {cell.identity['task']}"
        if name in folders:
            name += f", seed {cell.identity['seed']}"
        folders[name] = cell.folder
    return folders


def check(address: str, comparison: Comparison) -> None:
    """Ask the server one question, once its models are there, and print what the first said.

    In fp32, or in int8 where they have only that.
    """
    task = comparison.models[0].task
    while True:
        doing = comparison.doing  # before what is ready, which may be more by then
        if ready := [name for name in FILES if comparison.is_ready(task, name)]:
            break
        if not doing:
            raise UserError(comparison.error or "the models have no form in common; show fewer")
        time.sleep(0.1)
    path, fields = CHECKS[task]
    fields = fields | {"precision": ready[0]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/{path}", json.dumps(fields).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight to the server
    try:
        with opener.open(request, timeout=60) as response:
            row = json.load(response)[0]
    except OSError as error:
        told = error.read().decode() if isinstance(error, urllib.error.HTTPError) else error
        raise UserError(f"{address}/{path}: no answer ({told}); look at the models") from None
    said = row["answers"][0]["text"] if "answers" in row else row.get("label", row.get("score"))
    print(f"{row['model']} says {said!r} in {row['milliseconds']} ms: the demo works")


@entry_point
def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="*", help="folders of fine-tuned models, or hub names")
    parser.add_argument("--recipe", default="quick", help="if no models are given (default: quick)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--check", action="store_true", help="answer one request and stop")
    arguments = parser.parse_args()
    if arguments.models:
        reason = "is for no models; they are given already, drop one of the two"
        refuse_options(parser, arguments, ("recipe",), reason)
    names = [Path(os.path.abspath(model)).name for model in arguments.models]
    if len(set(names)) < len(names):
        names = arguments.models  # whole paths tell folders of one name apart
    chosen = dict(zip(names, arguments.models, strict=True)) or kept_models(arguments.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(chosen, Path(scratch))
        server = create_server(
            create_app(comparison, arguments.host),
            arguments.host,
            0 if arguments.check else arguments.port,
        )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{server.effective_port}"
        print(f"{address} (stop with Ctrl-C)", flush=True)
        # Waitress swallows what stops this script, so it has a thread of its own.
        serving = threading.Thread(target=server.run, daemon=True)
        serving.start()
        threading.Thread(target=comparison.load, daemon=True).start()
        try:
            if arguments.check:
                check(address, comparison)
            else:
                while serving.is_alive():  # a signal just before a wait does not end it
                    serving.join(timeout=1)
        finally:
            for process in multiprocessing.active_children():  # an export, which writes to scratch
                process.kill()
                process.join()


if __name__ == "__main__":
    main()
