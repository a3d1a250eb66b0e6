"""Where things are. The environment variables DATA_DIR and RESULTS_DIR override two of them."""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
ROOT = CODE.parent
RECIPES = CODE / "recipes"
NOTEBOOKS = ROOT / "notebooks"
SOURCES = ROOT / "data" / "sources.yaml"
PAPER = ROOT / "data" / "paper.yaml"
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data")).expanduser().resolve()
RESULTS = Path(os.environ.get("RESULTS_DIR", ROOT / "results")).expanduser().resolve()
