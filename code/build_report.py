"""Set report and poster of a recipe from its tables and figures, and record what they rest on.

    python code/build_report.py --recipe quick

Writes report/report-<recipe>.pdf and poster/poster-<recipe>.pdf. The record that it writes last
tells the experiment graph that both were built from exactly the present files.
"""

import os
import re
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

import segno
import typst

from distilbert_kit.errors import UserError
from distilbert_kit.files import write_atomically
from distilbert_kit.foreign import read_json
from distilbert_kit.paths import ROOT
from distilbert_kit.study.figures import check_tables
from distilbert_kit.study.publication import DOCUMENTS, pdf_path, publication_record
from distilbert_kit.study.recipes import Recipe, load_recipe
from distilbert_kit.study.records import recording, repository_address


def typeset(document: str, recipe: Recipe) -> bytes:
    """The PDF of "report" or "poster". UserError if a table or figure is missing or damaged.

    Typst reads nothing above its root, so the root is the folder that holds both the project and
    the results, which RESULTS_DIR may have put elsewhere.
    """
    check_tables(recipe)
    root = Path(os.path.commonpath([ROOT, recipe.folder]))
    inputs = {"recipe": recipe.name, "results": f"/{recipe.folder.relative_to(root).as_posix()}"}
    if address := repository_address():
        inputs |= {"address": address, "qr": segno.make(address).svg_inline()}
    try:
        return typst.compile(
            ROOT / document / f"{document}.typ",
            root=root,
            sys_inputs=inputs,
            ignore_system_fonts=True,  # the bundled fonts: the same pages everywhere
        )
    except typst.TypstError as error:
        if re.search(
            "not found|does not contain key|failed to (parse|load|decode)|UTF-8", str(error)
        ):
            raise UserError(
                f"{document}: {error}; run `make notebooks RECIPE={recipe.name}`"
            ) from None
        raise


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="quick")
    recipe = load_recipe(parser.parse_args().recipe)
    advice = f"run `make notebooks RECIPE={recipe.name}`"
    tables = read_json(recipe.folder / "tables" / "claims.json", advice)  # the first of them
    with recording(
        publication_record(recipe),
        stage="report",
        cell={"recipe": recipe.name},
        scale=recipe.scale,
        recipe=recipe.name,
        settings={},
        key=tables.get("publication_key", ""),  # none, or an older one, is not current
    ) as draft:
        for document in DOCUMENTS:
            target = pdf_path(document, recipe.name)
            content = typeset(document, recipe)
            write_atomically(target, content)
            draft.metrics[document] = {"file": target.relative_to(ROOT).as_posix()}
            print(f"{draft.metrics[document]['file']}: {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
