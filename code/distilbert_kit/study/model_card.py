"""The README.md of saved weights: what they are, what they scored, what they are for."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.sources import DataUsed, sources
from ..files import add_files
from ..metrics import METRICS
from ..models.hub_layout import read_architecture
from ..models.packaged import MINILM, MINILM_HUB, ORIGINS
from .inputs import public_name
from .records import Record

# The hub's names of weights that come in packages.
_HUB_NAMES = {MINILM: MINILM_HUB} | {name: origin.hub for name, origin in ORIGINS.items()}
_SCORES = {*METRICS, "exact_match"}

SCALES = {
    "paper": "paper scale: models as large as the paper's; the record tells how much they read",
    "reduced": "reduced scale: smaller models or less data than the paper's; not its results",
    "embedded": "embedded scale: small models, generated sentences; a demonstration",
}

_MADE = {
    "extract": "cut from a teacher's layers, not trained",
    "pretrain": "trained as a masked language model",
    "distill": "distilled from a teacher as a masked language model (arXiv 1910.01108)",
    "finetune": "fine-tuned on a task",
    "quantize": "fine-tuned on a task, then exported to ONNX in fp32 and dynamic int8",
    "csv": "fine-tuned, distilled or quantised on the rows of a CSV",
}

_USE = {
    "text-classification": "Classifies English texts like those of the data below, cut to the "
    "length in its settings.",
    "question-answering": "Finds the answer to an English question in a text that holds it.",
}

_START = "A starting point for fine-tuning on English texts. It answers nothing by itself."

# How the files are used elsewhere, run from their folder. transformers 5 has no pipeline for
# question answering.
_PIPELINE_CODE = """from transformers import pipeline

print(pipeline("%s", model=".")(%s))
"""

_QUESTION_CODE = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Where is it?", "It is in Paris.", return_tensors="pt")
with torch.inference_mode():
    output = AutoModelForQuestionAnswering.from_pretrained(".")(**inputs)
first, last = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))
"""

_ONNX_CODE = """import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reports by default

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

encoded = Tokenizer.from_file("tokenizer.json").encode(%s)
given = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
given["token_type_ids"] = encoded.type_ids
session = onnxruntime.InferenceSession("model_quantized.onnx")  # int8
names = [wanted.name for wanted in session.get_inputs()]
print(session.run(None, {name: np.array([given[name]]) for name in names}))  # logits
"""

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A model {{ made }}, by the stage `{{ record.stage }}` of recipe `{{ record.recipe }}`
({{ scale }}). `{{ place }}` has everything: settings, metrics, machine, versions.

## Intended use and limits

{{ use }} On other texts its scores say little: evaluate it on your own first. It carries the
biases of the text its base model was trained on, and must not decide about people.

{%- if code %}

## How to use it

In this folder:

```python
{{ code }}```
{%- endif %}

## Evaluation
{% if results %}
| data | metric | value |
|---|---|---|
{%- for result in results %}
| {{ result.dataset_name }} | {{ result.metric_type }} | {{ "%.4f"|format(result.metric_value) }} |
{%- endfor %}

One run: other seeds score otherwise.
{% else %}
Not evaluated on a task.
{% endif %}
## Data
{% if record.data %}
| data | rows | SHA-256 |
|---|---|---|
{%- for used in record.data %}
| {{ used.name }} | {{ used.rows }} | `{{ used.sha256 }}` |
{%- endfor %}
{% else %}
None of its own.
{% endif %}
## How it was made

- cell: {% for key, value in record.cell.items() %}{{ key }} `{{ value }}`{{ ", " if not loop.last }}{% endfor %}
- command: `{{ record.measured.command }}`
- commit: `{{ record.measured.git_commit or "unknown" }}`{{ ", with local changes" if record.measured.git_dirty }}
- finished {{ record.measured.finished }}, {{ "%.0f"|format(record.measured.wall_seconds) }} s
"""  # noqa: E501


def _code(folder: Path, pipeline: str) -> str:
    """Python that opens the folder's files without this kit; none for a bare encoder."""
    if (folder / "model_quantized.onnx").exists():
        texts = '"Where is it?", "It is in Paris."'
        return _ONNX_CODE % (texts if pipeline == "question-answering" else '"a fine film"')
    if pipeline == "question-answering":
        return _QUESTION_CODE
    text = "a [MASK] film" if pipeline == "fill-mask" else "a fine film"
    return _PIPELINE_CODE % (pipeline, f'"{text}"') if pipeline else ""


def _dataset(used: DataUsed) -> str:
    return used.name.rpartition("/")[0]


def hub_name(dataset: str) -> str:
    """The data set's name on the hub; "" for one that is not from there."""
    return sources().get(dataset, {}).get("hub", "")


def evaluation_results(record: Record, pipeline: str) -> list[EvalResult]:
    """The scores in the record's metrics of each split, those of int8 where there are several."""
    results = []
    for used in record.data:
        dataset, split = _dataset(used), used.name.rpartition("/")[2]
        scores = record.metrics.get(split)
        if not isinstance(scores, dict):
            continue
        for name, value in scores.get("onnx_int8", scores).items():
            if name in _SCORES:
                results.append(
                    EvalResult(
                        task_type=pipeline,
                        dataset_type=hub_name(dataset) or dataset,
                        dataset_name=used.name,
                        dataset_split=split,
                        metric_type=name,
                        metric_value=value,
                    )
                )
    return results


def model_card(folder: Path, record: Record, weights: Iterable[str]) -> str:
    """The `README.md` of a folder of saved weights.

    `record` is that of the run that made them, `weights` are the given ones they descend from: a
    hub name, "minilm" or a folder.
    """
    _, pipeline = read_architecture(folder)
    own = record.stage == "csv"  # texts of the user, in any language; one record for all models
    results = evaluation_results(record, pipeline)
    data = ModelCardData(
        model_name=folder.name,
        base_model=[_HUB_NAMES.get(name) or public_name(name) for name in weights] or None,
        datasets=sorted(filter(None, {hub_name(_dataset(used)) for used in record.data})) or None,
        eval_results=results or None,
        language=None if own else "en",
        library_name="onnx" if (folder / "model_quantized.onnx").exists() else "transformers",
        metrics=sorted({result.metric_type for result in results}) or None,
        pipeline_tag=pipeline or None,
        tags=["distilbert", record.scale],
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=folder.name,
        made=_MADE.get(record.stage, "of this study"),
        record=record,
        results=results,
        scale=SCALES[record.scale],
        use=_USE.get(pipeline, _START).replace("English ", "" if own else "English "),
        place="../record.json" if own else "record.json",
        code=_code(folder, pipeline),
    )
    return str(card)


def write_model_card(folder: Path, record: Record, weights: Iterable[str]) -> None:
    """Write `model_card` to the folder, one of the kit."""
    add_files(folder, {"README.md": model_card(folder, record, weights).encode()})
