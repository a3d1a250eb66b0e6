"""Every test starts from the same random state, whichever ran before it."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# Tests run side by side, and theirs are tiny models: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from distilbert_kit.paths import CODE

# Examples of a property: 50, the same in every run; 2,000 with --hypothesis-profile=nightly.
SETTINGS = settings.get_profile("ci")
settings.register_profile("ci", SETTINGS, max_examples=50)
settings.register_profile("nightly", SETTINGS, max_examples=2000, derandomize=False)
settings.load_profile("ci")

# A job in the background, or under nohup, is deaf to these; programs under test would inherit it.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that no worker ends alone with one of them."""
    items.sort(key=lambda item: item.path.stem not in ("test_dry_run", "test_types"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder, with a space in its name, for this process and its children."""
    folder = tmp_path / "re sults"
    monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", folder)
    monkeypatch.setenv("RESULTS_DIR", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The folder of a small classifier's checkpoint."""
    from hostile import save_classifier

    return save_classifier(tmp_path_factory.mktemp("original") / "m")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`squad`, `news` and `similarity`, tiny models, as weights and (`-int8`) as graphs.

    An export takes seconds: the first of the workers makes them for all.
    """
    from distilbert_kit.models.config import create_model_config
    from distilbert_kit.models.model import (
        DistilBERTForQuestionAnswering,
        DistilBERTForSequenceClassification,
    )
    from distilbert_kit.models.tokenizers import get_tokenizer
    from distilbert_kit.serve.export import save_onnx

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            torch.manual_seed(0)
            part, tiny = folder.with_name("exported.part"), create_model_config("tiny")
            labels = ("bad", "good", "so-so")
            for name, model in {
                "squad": DistilBERTForQuestionAnswering(tiny),
                "news": DistilBERTForSequenceClassification(tiny, labels=labels),
                "similarity": DistilBERTForSequenceClassification(tiny, 1, ("score",)),
            }.items():
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
                model.save_pretrained(part / name, get_tokenizer())
                save_onnx(model.eval(), part / f"{name}-int8", get_tokenizer())
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A BERT of two labels, whose parameters all differ; its weights' and its graphs' folder."""
    from distilbert_kit.models.config import create_model_config
    from distilbert_kit.models.model import DistilBERTForSequenceClassification
    from distilbert_kit.models.tokenizers import get_tokenizer
    from distilbert_kit.serve.export import save_onnx

    torch.manual_seed(0)
    shape = create_model_config(
        "MiniLM-L6", num_layers=1, hidden_size=32, num_heads=4, intermediate_size=64
    )
    model = DistilBERTForSequenceClassification(shape, labels=("negative", "positive")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "weights", get_tokenizer())
    save_onnx(model, folder / "graphs", get_tokenizer())
    return model, folder / "weights", folder / "graphs"


@pytest.fixture
def folder(original, tmp_path):
    """A good checkpoint, to be made a bad one."""
    return Path(shutil.copytree(original, tmp_path / "m"))


@pytest.fixture
def tiny(results, tmp_path):
    """A small recipe with invented records of all its cells."""
    from invented import make_recipe, write_evidence  # not before it is needed: it takes seconds

    recipe = make_recipe(tmp_path)
    write_evidence(recipe)
    return recipe
