"""Questions per second: our windows, buckets and extraction against the usual transformers loop.

transformers 5 has no question-answering pipeline any more. The loop beside ours is the one its
examples teach: windows from the tokenizer padded to the full length, batches in file order, and
the best 20 starts combined with the best 20 ends of each window in Python. Both sides start from
texts, have the same weights, windows and precision, and end with one answer for each question.
"""

import tempfile

import numpy as np
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    DistilBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from distilbert_kit.data.tables import load_table
from distilbert_kit.data.tasks import get_task
from distilbert_kit.models.model import DistilBERTForQuestionAnswering
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import WindowSettings
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.measure import alternate
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.training.question_answering import answer_questions

SEARCHED = 20  # starts and ends looked at


def textbook_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    contexts: list[str],
    settings: WindowSettings,
    batch_size: int,
) -> list[str]:
    """The best answer to each question, the usual way."""
    windows = []
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        room = settings.max_length - len(tokenizer(question)["input_ids"]) - 1
        encoded = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=settings.max_length,
            stride=room - settings.stride,  # what two windows share
            padding="max_length",
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for index, ids in enumerate(encoded["input_ids"]):
            inside = [part == 1 for part in encoded.sequence_ids(index)]
            mask, offsets = encoded["attention_mask"][index], encoded["offset_mapping"][index]
            windows.append((number, ids, mask, inside, offsets))
    best = [(-np.inf, "")] * len(questions)
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        _, ids, mask, _, _ = zip(*batch)
        with torch.inference_mode():
            output = model(torch.tensor(ids), attention_mask=torch.tensor(mask))
        logits = torch.stack([output.start_logits, output.end_logits]).numpy()
        for row, (number, _, _, inside, offsets) in enumerate(batch):
            start, end = np.where(inside, logits[:, row], -np.inf)
            for i in np.argsort(-start)[:SEARCHED]:
                for j in np.argsort(-end)[:SEARCHED]:
                    total = start[i] + end[j]
                    if 0 <= j - i < settings.answer_length and total > best[number][0]:
                        text = contexts[number][offsets[i][0] : offsets[j][1]]
                        best[number] = (total, text)
    return [text for _, text in best]


def measure(recipe: Recipe, draft: Draft) -> str:
    """Both on the same dev questions, evenly over the file, DistilBERT-base with random weights."""
    settings, windows = recipe.question_answering_speed, WindowSettings()
    task, tokenizer = get_task("squad"), get_tokenizer()
    table, used = load_table(task.dataset, "validation", ("id", *task.text_columns, "answers"))
    draft.data = [used]
    rows = np.linspace(0, len(table) - 1, settings.questions).round().astype(int)
    questions, contexts = (table.select(rows)[column][:] for column in task.text_columns)
    theirs = AutoModelForQuestionAnswering.from_config(DistilBertConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = DistilBERTForQuestionAnswering.from_pretrained(folder, require_head=True)
    answers = {}

    def answer_ours() -> None:
        found = answer_questions(ours, tokenizer, questions, contexts, windows, n_best=1)
        answers["ours"] = [best[0].text for best in found]

    def answer_theirs() -> None:
        answers["textbook"] = textbook_answers(
            theirs, tokenizer, questions, contexts, windows, settings.batch_size
        )

    taken = alternate({"ours": answer_ours, "textbook": answer_theirs}, settings.rounds, warmup=0)
    same = [ours == theirs for ours, theirs in zip(*answers.values(), strict=True)]
    draft.metrics = {
        "weights": "random, the same on both sides",
        "precision": "fp32",
        "questions": settings.questions,
        "batch_size": settings.batch_size,
        "same_answers": float(np.mean(same)),
    }
    draft.extra = {
        "seconds": {name: values.round(3).tolist() for name, values in taken.items()},
        "threads": torch.get_num_threads(),
    }
    return (
        f"{ratio_of_totals(taken['textbook'], taken['ours'])['ratio']:.2f} times the usual loop, "
        f"{draft.metrics['same_answers']:.1%} of the answers equal"
    )
