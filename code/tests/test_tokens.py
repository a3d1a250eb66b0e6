"""Tokens of documents: against transformers' tokenizer."""

import numpy as np
import pytest
from corpora import (
    ENCODER,
    TOKENIZER,
    ids_of,
    sentence,
)
from hypothesis import given, settings, strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from distilbert_kit.corpus import prepare as corpus
from distilbert_kit.corpus.prepare import encode_documents
from distilbert_kit.errors import UserError
from distilbert_kit.models.tokenizers import get_tokenizer

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(
            "aA bB\t\n\r\x0b\x1c\x85\u00a0\u3000.,!-'\u0301\u0130\u03a3語中\u200d\ufffd\0"
        ),
    ),
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_tokens_equal_those_of_transformers(texts):
    found = [np.frombuffer(ids, "<u2").tolist() for ids in ENCODER.encode(texts)]
    assert found == [ids_of(text) for text in texts]


def test_long_texts_are_cut_without_changing_a_token(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 2000)
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 3000)
    monkeypatch.setattr(corpus, "CACHE_CHARACTERS", 500)
    texts = [" ".join(sentence(i) for i in range(n)) for n in (1, 90, 3, 200)]
    texts.insert(1, "")
    texts.append("Ünïcödé,words;" * 900 + "語" * 5000)
    found = [ids.tolist() for _, ids in encode_documents(texts, TOKENIZER)]
    assert found == [ids_of(text) for text in texts]


def test_special_tokens_in_a_text_are_text():
    ((_, ids),) = encode_documents(
        ["a [MASK] and [SEP][CLS] [PAD][UNK] in documentation"], TOKENIZER
    )
    assert not set(ids.tolist()) & set(TOKENIZER.all_special_ids)
    # Without the guard there would be something to find.
    assert set(ids_of("a [MASK]")) & set(TOKENIZER.all_special_ids)
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.add_special_tokens({"additional_special_tokens": ["language"]})
    ((_, ids),) = encode_documents(["a language"], tokenizer)
    assert ids.tolist() == ids_of("a language")


def test_truncation_and_padding_of_the_checkpoint_are_ignored():
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.backend_tokenizer.enable_truncation(128)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    text = sentence(0, 300)
    found = [ids.tolist() for _, ids in encode_documents([text, "a b"], tokenizer)]
    assert found == [ids_of(text), ids_of("a b")]


def test_not_a_bert_tokenizer():
    rust = TOKENIZER.backend_tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    rust.pre_tokenizer = ByteLevel()
    with pytest.raises(UserError, match="BERT family"):
        next(encode_documents(["a"], PreTrainedTokenizerFast(tokenizer_object=rust)))
