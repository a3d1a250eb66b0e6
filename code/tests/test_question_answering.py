"""Question answering: windows, targets, spans, the objective, and what is no question."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import assume, given, strategies as st

from benchmarks.question_answering_speed import textbook_answers
from distilbert_kit.data.batches import LengthBatchSampler, create_dataloader
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForQuestionAnswering
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import SoftTargets, TrainSettings, WindowSettings
from distilbert_kit.training.fine_tuning import teacher_logits
from distilbert_kit.training.loop import train
from distilbert_kit.training.question_answering import (
    QuestionAnsweringDataset,
    answer_questions,
    best_spans,
    extract_answers,
    predict_spans,
    span_objective,
)

TOKENIZER = get_tokenizer()
SQUAD = get_task("squad")
SMALL = WindowSettings(max_length=24, stride=5, question_length=6, answer_length=4)
WORDS = st.sampled_from(
    ["Rome", "caf\u00e9", "cafe\u0301", "東京", "\U0001f600", "👩\u200d👧", "naïve,", "(1889)", "a",
     "unaffable", "\u200b", "İstanbul", "न", "$5.30", "x\u0327y"]
)  # fmt: skip
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)
LONG = "The tower in Paris was built in 1889 by a man from Dijon , and the bridge in Rome later ."


def model(kind="distilbert", **changes):
    name = "tiny" if kind == "distilbert" else "bert-base-uncased"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0}
    config = create_model_config(name, **shape | no_dropout | changes)
    made = DistilBERTForQuestionAnswering(config).eval()
    with torch.no_grad():  # fresh weights are tiny: larger ones make words and positions count
        for parameter in made.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return made


def library_windows(question, context, limits):
    """The windows that the tokenizer itself cuts, with offsets and sides."""
    room = limits.max_length - len(TOKENIZER(question)["input_ids"]) - 1
    return TOKENIZER(
        question,
        context,
        truncation="only_second",
        max_length=limits.max_length,
        stride=room - limits.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


@given(TEXTS, st.integers(0, 400), st.integers(1, 30))
def test_windows_and_targets_equal_the_tokenizer_and_a_search(context, first, length):
    """Every window as transformers cuts it; the answer where a search by characters finds it."""
    question = "where is it"
    first %= len(context)
    answer = (first, min(first + length, len(context)))
    library = library_windows(question, context, SMALL)
    whole = TOKENIZER(context, add_special_tokens=False, return_offsets_mapping=True)
    assume(whole["input_ids"])
    touched = {
        pair for pair in whole["offset_mapping"] if pair[0] < answer[1] and pair[1] > answer[0]
    }
    rows = ([question] * 2, [context] * 2, TOKENIZER, SMALL, [answer, (0, len(context))])
    dataset = QuestionAnsweringDataset(*rows)
    assert dataset.dropped == (not touched)
    assume(touched)
    items = [dataset[i] for i in range((dataset.question == 0).sum())]
    assert [item["input_ids"] for item in items] == library["input_ids"]
    assert dataset.lengths.tolist()[: len(items)] == [len(item["input_ids"]) for item in items]
    for item, types in zip(items, library["token_type_ids"], strict=True):
        assert dataset.collate([item])["token_type_ids"].tolist() == [types]
    for index, item in enumerate(items):
        inside = [i for i, side in enumerate(library.sequence_ids(index)) if side == 1]
        offsets = library["offset_mapping"][index]
        hits = [i for i in inside if offsets[i] in touched]
        complete = touched == {offsets[i] for i in hits}
        # Letters of one syllable share their offsets: a window may begin amid them.
        if complete and len({offsets[i] for i in inside}) == len(inside):
            assert item["positions"] == [hits[0], hits[-1]]
        elif not complete:
            assert item["positions"] == [0, 0]


@given(st.lists(WORDS, min_size=1, max_size=30), st.data())
def test_sure_logits_give_the_answer_back(words, drawn):
    """An answer of whole words comes back letter by letter, marks, emoji and all."""
    first = drawn.draw(st.integers(0, len(words) - 1))
    last = drawn.draw(st.integers(first, min(first + 1, len(words) - 1)))
    context, answer = " ".join(words), " ".join(words[first : last + 1])
    assume("\u200b" not in (words[first], words[last]))  # no token stands for it
    start = len(" ".join([*words[:first], ""]))
    assert context[start : start + len(answer)] == answer
    limits = WindowSettings(max_length=40, stride=10, question_length=6)
    dataset = QuestionAnsweringDataset(
        ["who"], [context], TOKENIZER, limits, [(start, start + len(answer))]
    )
    logits = np.zeros((dataset.offsets[-1], 2), np.float32)
    for window, (*_, positions) in enumerate(dataset[i].values() for i in range(len(dataset))):
        for side, place in enumerate(positions):
            logits[dataset.offsets[window] + place, side] = 9 * (place > 0)
    (found,) = extract_answers(dataset, logits)
    assert found[0].text == answer and (found[0].start, found[0].end) == (
        start,
        start + len(answer),
    )


def test_every_token_is_in_a_window_and_long_questions_are_cut():
    context = " ".join(f"w{i}" for i in range(90))
    questions = ["what is it", "who " * 20]
    dataset = QuestionAnsweringDataset(questions, [context] * 2, TOKENIZER, SMALL)
    assert dataset.truncated == 1 and dataset.counts["dropped"] == 0
    assert len(dataset.context_ids) == 1  # tokenised once
    for number, asked in enumerate((3, 6)):
        mine = dataset.question == number
        covered = [range(*pair) for pair in zip(dataset.start[mine], dataset.stop[mine])]
        assert set(itertools.chain(*covered)) == set(range(len(dataset.context_ids[0])))
        assert set(dataset.context_at[mine]) == {asked + 2}
        assert dataset.lengths[mine].max() == SMALL.max_length


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 60), st.integers(0, 999))
def test_best_spans_equal_a_search_over_all_pairs(length, longest, n_best, seed):
    start, end = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(seed))
    start[:, length - length // 3 :] = end[:, length - length // 3 :] = float("-inf")
    scores, first, last = best_spans(start, end, longest, n_best)
    for row in range(3):
        pairs = [
            (float(start[row, i] + end[row, j]), i, j)
            for i in range(length)
            for j in range(i, min(i + longest, length))
        ]
        found = np.array([values[row].tolist() for values in (scores, first, last)]).T
        expected = [p for p in sorted(pairs, reverse=True) if np.isfinite(p[0])][:n_best]
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-6)
        assert not np.isfinite(found[len(expected) :, 0]).any()


def test_n_best_over_windows_equals_a_search_over_all_of_them():
    contexts = [LONG, "Rome", LONG.lower() + " " + LONG]
    dataset = QuestionAnsweringDataset(["where", "who", "when"], contexts, TOKENIZER, SMALL)
    logits = np.random.default_rng(0).normal(size=(dataset.offsets[-1], 2)).astype(np.float32)
    found = extract_answers(dataset, logits, n_best=7)
    for number, context in enumerate(contexts):
        best = {}
        for window in np.flatnonzero(dataset.question == number):
            spans = dataset.spans[dataset.context_of[number]]
            tokens = range(dataset.start[window], dataset.stop[window])
            rows = logits[dataset.offsets[window] + dataset.context_at[window] :]
            for i, j in itertools.product(range(len(tokens)), repeat=2):
                if 0 <= j - i < SMALL.answer_length:
                    where = (int(spans[tokens[i], 0]), int(spans[tokens[j], 1]))
                    best[where] = max(best.get(where, -np.inf), float(rows[i, 0] + rows[j, 1]))
        expected = sorted(best.items(), key=lambda pair: -pair[1])[:7]
        assert [(a.start, a.end) for a in found[number]] == [where for where, _ in expected]
        assert [a.score for a in found[number]] == pytest.approx([s for _, s in expected])
        assert all(a.text == context[a.start : a.end] for a in found[number])
    assert [best[0] for best in found] == [best[0] for best in extract_answers(dataset, logits)]


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_logits_and_answers_equal_the_textbook(tmp_path, kind):
    made = model(kind)
    made.save_pretrained(tmp_path / "m", TOKENIZER)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "m").eval()
    questions = ["Where is the tower?", "Who built it?", "When?", "What is in Rome?"]
    contexts = [LONG, LONG * 3, "Rome", LONG[20:]]
    limits = WindowSettings(max_length=48, stride=16, question_length=16, answer_length=5)
    dataset = QuestionAnsweringDataset(questions, contexts, TOKENIZER, limits)
    found = predict_spans(made, dataset, batch_tokens=100)
    for window, (first, last) in enumerate(itertools.pairwise(dataset.offsets)):
        batch = dataset.collate([dataset[window]])
        with torch.inference_mode():
            if kind == "distilbert":
                batch.pop("token_type_ids")
            output = theirs(**batch)
        expected = torch.stack([output.start_logits[0], output.end_logits[0]], -1)
        np.testing.assert_allclose(found[first:last], expected, atol=2e-4)
    if kind == "distilbert":  # the loop for models without token types
        answers = answer_questions(made, TOKENIZER, questions, contexts, limits)
        expected = textbook_answers(theirs, TOKENIZER, questions, contexts, limits, 3)
        assert [best[0].text for best in answers] == expected
        assert all(len(best) > 1 for best in answers if best[0].text != "Rome")


def test_objective_equals_the_mean_over_windows_without_padding(tmp_path):
    made = model("bert")
    contexts, answers = [LONG, "Rome is old", LONG], [(13, 18), (0, 4), None]
    dataset = QuestionAnsweringDataset(
        ["where", "what city", "who"], contexts, TOKENIZER, SMALL, answers
    )
    assert dataset.counts["dropped"] == 1 and 2 not in dataset.question
    teacher = model("bert", initializer_range=0.05)
    teacher.save_pretrained(tmp_path / "t", TOKENIZER)
    dataset.teacher_logits = teacher_logits(tmp_path / "t", SQUAD, dataset, TOKENIZER, "fp32")
    targets = SoftTargets(temperature=3.0, soft_weight=0.4)
    objective = span_objective(targets)
    items = [dataset[i] for i in range(len(dataset))]
    assert len({len(item["input_ids"]) for item in items}) > 1  # so there is padding
    batch = dataset.collate(items)
    counts = {name: float(n) for name, n in objective.counts(batch).items()}
    total, _ = objective.loss(made, batch, counts)
    total.backward()
    found = [p.grad.clone() for p in made.parameters() if p.grad is not None]
    made.zero_grad()
    expected = 0.0
    for item in items:
        batch = dataset.collate([item])
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        ours = made(**inputs)
        with torch.no_grad():
            taught = teacher(**inputs)
        for side in ("start", "end"):
            logits, soft = (getattr(output, f"{side}_logits") for output in (ours, taught))
            hard = F.cross_entropy(logits, batch[f"{side}_positions"])
            kl = F.kl_div(F.log_softmax(logits / 3, -1), F.softmax(soft / 3, -1), reduction="sum")
            expected += (0.6 * hard + 0.4 * 9 * kl) / 2 / len(items)
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    given_back = [p.grad for p in made.parameters() if p.grad is not None]
    for gradient, reference in zip(found, given_back, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


DEV = 60
PLACES = ("Paris", "Rome", "Oslo", "Lima")
NAMES = ("Anna", "Bob", "Carl", "Dora")


def toy_rows(count, seed, people=4):
    """People live in places; where does one of them live?"""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        homes = dict(zip(NAMES[:people], rng.permutation(PLACES)[:people], strict=True))
        context = " ".join(f"{name} lives in {home} ." for name, home in homes.items())
        name = NAMES[number % people]
        answer = {"text": [homes[name]], "answer_start": [context.index(homes[name])]}
        question = f"Where does {name} live?"
        rows.append(
            {"id": f"q{number}", "context": context, "question": question, "answers": answer}
        )
    return rows


def test_learns_to_answer():
    rows = toy_rows(8, 0)
    questions, contexts = ([row[name] for row in rows] for name in ("question", "context"))
    starts = [row["answers"]["answer_start"][0] for row in rows]
    spans = [(s, s + len(row["answers"]["text"][0])) for s, row in zip(starts, rows)]
    dataset = QuestionAnsweringDataset(questions, contexts, TOKENIZER, WindowSettings(), spans)
    made = DistilBERTForQuestionAnswering(create_model_config("tiny", dropout=0.0, qa_dropout=0.0))
    loader = create_dataloader(dataset, LengthBatchSampler(dataset.lengths, 8))
    learning = TrainSettings(epochs=60, learning_rate=5e-3, batch_size=8, precision="fp32")
    train(made, loader, span_objective(), learning, seed=0)
    answers = extract_answers(dataset, predict_spans(made, dataset))
    right = [best[0].text == row["answers"]["text"][0] for best, row in zip(answers, rows)]
    assert np.mean(right) > 0.8


@pytest.mark.parametrize(
    ("question", "context", "words"),
    [
        ("", LONG, "input: row 2 has an empty question"),
        ("who", " \u200b ", "input: row 2 has an empty context"),
    ],
)
def test_empty_texts_are_named(question, context, words):
    with pytest.raises(UserError, match=words):
        answer_questions(model(), TOKENIZER, ["who", question], [LONG, context])


def test_other_bad_input_is_named():
    with pytest.raises(UserError, match="2 questions but 1 contexts"):
        answer_questions(model(), TOKENIZER, ["a", "b"], [LONG])
    with pytest.raises(UserError, match="no question has an answer"):
        QuestionAnsweringDataset(["who"], [LONG], TOKENIZER, SMALL, [None])
    with pytest.raises(ValueError, match="stride 61 skips text"):
        WindowSettings(max_length=127, stride=61)
