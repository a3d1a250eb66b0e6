"""Data sets on disk, damaged and good; batches and their order."""

import math
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from transformers import BertTokenizer

from distilbert_kit.data import sources, tables as data
from distilbert_kit.data.batches import (
    ClassificationDataset,
    LengthBatchSampler,
    MLMDataset,
    create_classification_dataloader,
    create_mlm_dataloader,
    evenly_by_length,
)
from distilbert_kit.data.sources import rows_sha256
from distilbert_kit.data.tables import load_table
from distilbert_kit.data.tasks import TASKS, get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.models.vocabulary import vocabulary_size
from distilbert_kit.settings import FinetuneSettings, QuestionAnsweringSettings, TextSettings
from distilbert_kit.training.classification import load_task_split

ROWS = [{"sentence": f"sentence number {i} is fine", "label": i % 2} for i in range(20)]


@pytest.fixture
def sst2(tmp_path, monkeypatch):
    """A small SST-2 in the layout of data/, listed as the official one."""
    listed = {"rows": len(ROWS), "sha256": rows_sha256(ROWS)}
    folder = tmp_path / "data [1]*"  # the library datasets takes patterns
    monkeypatch.setattr(data, "DATA", folder)
    monkeypatch.setattr(data, "expected_split", lambda *_: listed)
    path = folder / "glue" / "sst2" / "validation.parquet"
    path.parent.mkdir(parents=True)

    def write(rows, **changes):
        pd.DataFrame(rows).to_parquet(path)
        listed.update(changes)
        return path

    write(ROWS)
    return write


def load():
    texts = TextSettings(max_length=64)
    return load_task_split(get_task("sst2"), "validation", get_tokenizer(), texts)


def test_good_file_is_read_and_its_hash_kept(sst2):
    dataset, table, used = load()
    assert len(dataset) == len(table) == used.rows == 20
    assert used.name == "glue/sst2/validation" and used.sha256 == rows_sha256(ROWS)


def test_hash_does_not_depend_on_the_writer(sst2):
    path = sst2(ROWS)
    pd.DataFrame(ROWS).to_parquet(path, compression="gzip", row_group_size=3)
    assert load()[2].sha256 == rows_sha256(ROWS)


def test_missing_file_names_command_and_recipe(sst2):
    sst2(ROWS).unlink()
    with pytest.raises(UserError, match=r"missing; run `make data DATASET=glue/sst2`.*quick"):
        load()


def test_truncated_file(sst2):
    path = sst2(ROWS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not a readable parquet file"):
        load()


def test_a_damaged_footer_is_blamed_on_the_file(sst2):
    """Arrow calls some of its complaints OSError, as the disk's are."""
    path = sst2(ROWS)
    content, kinds = path.read_bytes(), set()
    for place in range(len(content) - 400, len(content) - 12, 7):
        spoilt = bytearray(content)
        spoilt[place] ^= 0xFF
        path.write_bytes(spoilt)
        try:
            pq.read_metadata(path)
        except Exception as error:
            kinds.add(type(error))
        try:
            load()
        except UserError as error:
            assert "HF_HOME" not in str(error)
    assert OSError in kinds


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_file(sst2, monkeypatch):
    """As with a HOME that may only be read: fetching the file again would change nothing."""
    sst2(ROWS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/nowhere"))
    with pytest.raises(UserError, match=r"^/proc/nowhere.*point HF_HOME"):
        load()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": r["sentence"], "label": r["label"]} for r in ROWS], "no column 'sentence'"),
        (ROWS[:-1], "19 rows, expected 20"),
        ([{**r, "sentence": r["sentence"] + "!"} for r in ROWS], "content SHA-256"),
    ],
)
def test_other_content_is_refused(sst2, rows, message):
    sst2(rows)
    with pytest.raises(UserError, match=message):
        load()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "fine", "label": 2}, "row 20 has label 2, expected 0 to 1"),
        ({"sentence": "  ", "label": 1}, "row 20 has an empty sentence"),
        ({"sentence": None, "label": 1}, "row 20 has an empty sentence"),
    ],
)
def test_bad_rows_are_named(sst2, row, message):
    rows = [*ROWS[:-1], row]
    sst2(rows, sha256=rows_sha256(rows))
    with pytest.raises(UserError, match=message):
        load()


def test_unlisted_data_set():
    with pytest.raises(UserError, match="not listed"):
        load_table("glue/unknown", "train", ["label"])
    with pytest.raises(UserError, match="no task 'sst3'"):
        get_task("sst3")


def test_every_task_is_listed_with_its_columns():
    for task in TASKS.values():
        if not task.dataset.startswith("embedded/"):
            listed = sources.sources()[task.dataset]
            assert {*task.text_columns, task.label_column} <= set(listed["columns"]), task.name
            assert {task.train_split, *task.eval_splits} <= set(listed["splits"]), task.name
        assert task.primary in task.metrics


def test_long_texts_are_cut_and_counted():
    tokenizer = get_tokenizer()
    texts = ["word " * n for n in (5, 600, 510, 511)]
    dataset = ClassificationDataset(texts, [0] * 4, tokenizer)
    assert dataset.lengths.tolist() == [7, 512, 512, 512]
    assert dataset.truncated == 2


@given(st.lists(st.integers(1, 700), min_size=1, max_size=5), st.integers(131, 512))
def test_head_tail_keeps_the_first_128_pieces_and_the_last(counts, max_length):
    tokenizer = get_tokenizer()
    words = np.array(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
    texts = [" ".join(words[np.arange(count) * (count + 3) % 10]) for count in counts]
    dataset = ClassificationDataset(texts, None, tokenizer, max_length, "head_tail")
    for text, ids, types in zip(texts, dataset.input_ids, dataset.token_type_ids):
        pieces, room = tokenizer.tokenize(text), max_length - 2
        if len(pieces) > room:
            pieces = pieces[:128] + pieces[len(pieces) - (room - 128) :]
        assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *pieces, "[SEP]"]
        assert types == [0] * len(ids)
    assert dataset.truncated == sum(count > max_length - 2 for count in counts)


def test_head_tail_of_short_texts_is_head():
    texts = [row["sentence"] for row in ROWS]
    head, both = (
        ClassificationDataset(texts, None, get_tokenizer(), 256, truncation)
        for truncation in ("head", "head_tail")
    )
    assert head.input_ids == both.input_ids and head.token_type_ids == both.token_type_ids


def test_a_selection_says_what_was_cut_of_it_and_mpnet_has_no_token_types():
    tokenizer = get_tokenizer("mpnet-base")
    texts = ["word " * count for count in (5, 600, 700)]
    dataset = ClassificationDataset(texts, None, tokenizer, 256, "head_tail")
    assert dataset.truncated == 2 and dataset.token_type_ids is None
    assert dataset.select([0, 2]).counts == {"truncated": 1}


def test_head_tail_refuses_pairs_and_too_little_room():
    with pytest.raises(UserError, match="single texts"):
        ClassificationDataset([("a", "b")], None, get_tokenizer(), 512, "head_tail")
    with pytest.raises(UserError, match="at least 131, not 130"):
        ClassificationDataset(["a"], None, get_tokenizer(), 130, "head_tail")


def test_truncation_of_a_recipe_reaches_the_data_and_the_default_no_hash(sst2):
    shared = {"epochs": 1, "learning_rate": 1e-4, "batch_size": 8}
    assert "truncation" not in FinetuneSettings(**shared).model_dump(mode="json")
    with pytest.raises(ValidationError, match="windows cut nothing off"):
        QuestionAnsweringSettings(**shared, truncation="head_tail")
    settings = FinetuneSettings(**shared, truncation="head_tail", max_length=256)
    assert settings.model_dump()["truncation"] == "head_tail"
    rows = [*ROWS[:-1], {"sentence": " ".join(map(str, range(400))), "label": 0}]
    sst2(rows, sha256=rows_sha256(rows))
    dataset, *_ = load_task_split(get_task("sst2"), "validation", get_tokenizer(), settings)
    assert get_tokenizer().decode(dataset.input_ids[-1]).endswith("398 399 [SEP]")


def test_pairs_keep_their_token_types():
    loader = create_classification_dataloader(
        [("one two", "three"), ("four", "five six seven")], [0, 1], get_tokenizer(), shuffle=False
    )
    (batch,) = loader
    reference = get_tokenizer()(
        ["four", "one two"], ["five six seven", "three"], padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], reference[name]), name
    assert batch["labels"].tolist() == [1, 0]


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(512, 4096),
    st.booleans(),
    st.integers(1, 5),
)
def test_batches_hold_every_example_once_within_both_budgets(lengths, size, tokens, shuffle, pool):
    sampler = LengthBatchSampler(lengths, size, tokens, shuffle=shuffle, pool=pool)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= size
        assert len(batch) * max(lengths[i] for i in batch) <= tokens


def test_order_follows_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 500)

    def order(seed, epoch):
        sampler = LengthBatchSampler(lengths, 16, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_buckets_leave_little_padding():
    lengths = np.random.default_rng(0).geometric(0.08, 5000).clip(3, 60)
    batches = list(LengthBatchSampler(lengths, 32))
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert padded < 1.05 * lengths.sum()


def test_mlm_loader_masks_anew_and_hides_only_words():
    texts = [f"the {word} sat on the mat and slept for long" for word in ("cat", "dog", "cow")]
    tokenizer = get_tokenizer()
    loader = create_mlm_dataloader(texts, tokenizer, batch_size=3)
    first, second = next(iter(loader)), next(iter(loader))
    assert not torch.equal(first["labels"], second["labels"])
    masked = first["labels"] != -100
    assert int(masked.sum()) == -(-15 * int(first["attention_mask"].sum()) // 100)
    special = torch.tensor(tokenizer.all_special_ids)
    assert not torch.isin(first["labels"][masked], special).any()
    told = torch.where(masked, first["labels"], first["input_ids"])
    assert not torch.equal(told, first["input_ids"])  # the batch hides what its labels tell
    reference = tokenizer(texts)["input_ids"]
    assert sorted(told.tolist()) == sorted(reference)


def test_the_masks_of_an_mlm_loader_follow_its_seed():
    texts = [f"the {word} sat on the mat and slept for long" for word in ("cat", "dog", "cow")]

    def labels(seed):
        """Of two passes, one batch each, in file order."""
        torch.manual_seed(len(seen))  # the state of torch is another each time
        loader = create_mlm_dataloader(texts, get_tokenizer(), 3, shuffle=False, seed=seed)
        seen.append(torch.stack([batch["labels"] for _ in range(2) for batch in loader]))
        return seen[-1]

    seen = []
    assert torch.equal(labels(3), labels(3))
    assert not torch.equal(labels(3), labels(4))


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_a_loader_masks_the_share_that_was_asked_for(probability):
    words = "cat dog cow pig hen fox owl bee ant elk"
    loader = create_mlm_dataloader([words], get_tokenizer(), mask_probability=probability)
    assert int((next(iter(loader))["labels"] != -100).sum()) == min(10, 12 * probability)
    ids = get_tokenizer()(words)["input_ids"]
    dataset = MLMDataset([ids], [len(ids)], get_tokenizer())
    usual = dataset.mask(dataset.collate([ids]))
    assert int((usual["labels"] != -100).sum()) == 2  # 15 % of 12, rounded up


def test_a_batch_has_16_examples_unless_another_number_is_asked_for():
    texts, tokenizer = ["a text"] * 33, get_tokenizer()
    for loader in (
        create_classification_dataloader(texts, None, tokenizer),
        create_mlm_dataloader(texts, tokenizer),
    ):
        assert sorted(len(batch["input_ids"]) for batch in loader) == [1, 16, 16]


def test_examples_of_one_length_keep_their_order():
    """On every machine: an unstable sort has an order of its own on each."""
    lengths = np.arange(1000) % 7
    by_length = sorted(range(1000), key=lambda index: lengths[index])
    assert evenly_by_length(lengths, 1000).tolist() == by_length
    [batch] = LengthBatchSampler(7 - lengths, 1000, shuffle=False)
    assert batch == by_length


def test_token_counts_are_those_of_the_tokenizer():
    """They were taken as they came, and the first batch with a rarer token had no weight for it."""
    tokenizer = get_tokenizer()
    for size in (len(tokenizer) - 1, len(tokenizer) + 1):
        with pytest.raises(UserError, match=r"for a vocabulary of 30,522: .* own tokenizer"):
            MLMDataset([[101, 7, 102]], [3], tokenizer, torch.ones(size))


def test_ids_with_gaps_are_counted_up_to_the_greatest():
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {name: number for number, name in enumerate(names)} | {"cat": 8, "dog": 30}
    tokenizer = BertTokenizer(vocab=vocabulary)
    assert len(tokenizer) < vocabulary_size(tokenizer) == 31
    loader = create_mlm_dataloader(["cat dog " * 20], tokenizer, mask_probability=1.0)
    labels = next(iter(loader))["labels"]
    assert set(labels[labels != -100].tolist()) == {8, 30}


def test_labels_of_another_order_are_told_with_what_to_do():
    features = datasets.Features(
        sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["positive", "negative"])
    )
    table = datasets.Dataset.from_list(ROWS, features=features)
    with pytest.raises(UserError, match=r"labels are .*; fetch the official copy or relabel it"):
        data.check_task_rows(table, get_task("sst2"), "here")


def test_one_text_is_no_list_of_texts():
    with pytest.raises(UserError, match="no texts: give one or more, in a list"):
        ClassificationDataset("a text", None, get_tokenizer())


def test_empty_input_is_refused():
    with pytest.raises(UserError, match="no texts"):
        create_classification_dataloader([], [], get_tokenizer())
    with pytest.raises(UserError, match="2 texts but 1 labels"):
        create_classification_dataloader(["a", "b"], [1], get_tokenizer())


@pytest.mark.parametrize("label", ["sport", None, math.nan, [0, 1]])
def test_a_label_that_is_no_number_is_refused(label):
    with pytest.raises(UserError, match=f"label {re.escape(repr(label))}: give the number"):
        create_classification_dataloader(["a", "b"], [0, label], get_tokenizer())


@pytest.mark.parametrize("kind", [torch.tensor, np.array, pd.Series, list])
def test_labels_may_be_booleans_of_any_list(kind):
    loader = create_classification_dataloader(["a", "b"], kind([True, False]), get_tokenizer(), 2)
    (batch,) = loader
    assert batch["labels"].dtype == torch.int64 and sorted(batch["labels"].tolist()) == [0, 1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_even_steps_go_from_the_shortest_to_the_longest(lengths, count):
    chosen = evenly_by_length(np.array(lengths), count)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(lengths))
    found = [lengths[index] for index in chosen]
    assert found == sorted(found) and found[0] == min(lengths)
    assert len(chosen) == 1 or found[-1] == max(lengths)
    assert evenly_by_length(np.arange(10), 4).tolist() == [0, 3, 6, 9]


def test_a_shuffled_pandas_series_keeps_each_label_with_its_text():
    frame = pd.DataFrame({"text": ["bad", "good", "dull"], "label": [0, 1, 0]}).iloc[[1, 2, 0]]
    loader = create_classification_dataloader(
        frame["text"], frame["label"], get_tokenizer(), batch_size=3, shuffle=False
    )
    (batch,) = loader
    told = {
        get_tokenizer().decode(ids, skip_special_tokens=True): int(label)
        for ids, label in zip(batch["input_ids"], batch["labels"])
    }
    assert told == {"bad": 0, "good": 1, "dull": 0}
