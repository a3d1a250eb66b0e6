"""A page in the browser: fine-tuned models answer the same question side by side, with times.

    make demo RECIPE=study                            # the models of a recipe, made if need be
    python code/demo.py my-squad-model another-one    # folders or hub names
    python code/demo.py my-squad-model --check        # starts, answers one request, stops

Question answering and classification, by the models' heads, in fp32 and int8. Programs post JSON
to /answer and /classify; /openapi.json describes them. Served on this machine only unless --host
says otherwise.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from distilbert_kit.script import entry_point

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
        label = recipe.models[cell.identity["model"]].label
        folders[f"{label}, {cell.identity['task']}"] = cell.folder
    return folders


def check(address: str, comparison: Comparison) -> None:
    """Ask the server one question, once its models are there, and print what the first said.

    In fp32, or in int8 where they have only that.
    """
    task = comparison.models[0].task
    while not (ready := [name for name in FILES if comparison.is_ready(task, name)]):
        if comparison.error or not comparison.doing:
            raise UserError(comparison.error or "the models have no form in common; show fewer")
        time.sleep(0.1)
    path, fields = CHECKS[task]
    fields = fields | {"precision": ready[0]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/{path}", json.dumps(fields).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        row = json.load(response)[0]
    said = row["answers"][0]["text"] if "answers" in row else row.get("label", row.get("score"))
    print(f"{row['model']} says {said!r} in {row['milliseconds']} ms: the demo works")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="folders of fine-tuned models, or hub names")
    parser.add_argument("--recipe", default="quick", help="if no models are given (default: quick)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--check", action="store_true", help="answer one request and stop")
    arguments = parser.parse_args()
    names = [Path(model).name for model in arguments.models]
    if len(set(names)) < len(names):
        names = arguments.models  # whole paths tell folders of one name apart
    chosen = dict(zip(names, arguments.models, strict=True)) or kept_models(arguments.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(chosen, Path(scratch))
        server = create_server(
            create_app(comparison), arguments.host, 0 if arguments.check else arguments.port
        )
        threading.Thread(target=comparison.load, daemon=True).start()
        address = f"http://{arguments.host}:{server.effective_port}"
        print(f"{address} (stop with Ctrl-C)", flush=True)
        if arguments.check:
            threading.Thread(target=server.run, daemon=True).start()
            check(address, comparison)
            sys.exit(0)
        server.run()


if __name__ == "__main__":
    main()
