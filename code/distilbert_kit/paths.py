"""Where things are. The environment variables DATA_DIR and RESULTS_DIR override two of them."""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
ROOT = CODE.parent
RECIPES = CODE / "recipes"
NOTEBOOKS = ROOT / "notebooks"
CLAIMS = ROOT / "data" / "claims.yaml"
PAPER = ROOT / "data" / "paper.yaml"
EARLIER = ROOT / "data" / "earlier_runs.yaml"
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data")).expanduser().resolve()
# A folder of other data says itself what it should hold.
OFFICIAL_SOURCES = ROOT / "data" / "sources.yaml"
SOURCES = DATA / "sources.yaml" if (DATA / "sources.yaml").is_file() else OFFICIAL_SOURCES
RESULTS = Path(os.environ.get("RESULTS_DIR", ROOT / "results")).expanduser().resolve()
