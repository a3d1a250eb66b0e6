"""Corpus preparation: its speed beside a slow tokenizer called once a line, and its memory.

The slow tokenizer is transformers' BERT tokenizer in pure Python, as the original's preparation
used it; it only encodes, ours also holds out, filters, removes repetitions and writes shards.
"""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.errors import UserError
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.inputs import pinned_source
from distilbert_kit.study.measure import peak_memory, rotated, seconds
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft


def distinct_lines(documents: list[str], size: int) -> Iterator[str]:
    """At least `size` bytes of lines: the documents, then halves of two, each pair once."""
    written = 0
    for shift in range(len(documents)):
        for index, document in enumerate(documents):
            line = document
            if shift:
                words, others = (
                    document.split(),
                    documents[(index + shift) % len(documents)].split(),
                )
                line = " ".join(words[: len(words) // 2] + others[len(others) // 2 :])
            yield line
            written += len(line.encode()) + 1
            if written >= size:
                return
    raise UserError(f"{written:,} bytes is all that the source gives: lower the sizes")


def write_text(documents: list[str], megabytes: float, path: Path) -> Path:
    """A file of lines of that size (10**6 bytes)."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in distinct_lines(documents, int(megabytes * 1e6)))
    return path


def prepare(text: Path, output: Path) -> None:
    """Our preparation of a text, as prepare_corpus.py runs it."""
    prepare_corpus(output, [open_source(f"lines:{text}")], get_tokenizer(), progress=True)


def slow_tokenizer(folder: Path) -> BertTokenizerLegacy:
    """The tokenizer in pure Python, over our vocabulary."""
    vocabulary = get_tokenizer().get_vocab()
    path = folder / "vocab.txt"
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    return BertTokenizerLegacy(str(path))


def encode_slowly(tokenizer: BertTokenizerLegacy, text: Path) -> int:
    """Tokens of a text, one call a line, CLS and SEP included."""
    with text.open(encoding="utf-8") as file:
        lines = tqdm(file, "slow tokenizer", unit=" lines", mininterval=1)
        return sum(len(np.array(tokenizer.encode(line.strip()), np.uint16)) for line in lines)


def measure(recipe: Recipe, draft: Draft) -> str:
    """Tokens a second of both on the same text; peak memory of ours by the size of the text."""
    settings = recipe.corpus_speed
    source = open_source(pinned_source(recipe, settings.source))
    documents = [line for text in source.read() if (line := " ".join(text.split()))]
    draft.metrics = {"source": source.identity, "documents": len(documents)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(documents, settings.compared_mb, folder / "compared.txt")
        tokenizer, number, tokens = slow_tokenizer(folder), count(), []
        runs = {
            "ours": lambda: prepare(text, folder / f"compared-{next(number)}"),
            "slow": lambda: tokens.append(encode_slowly(tokenizer, text)),
        }
        taken = {name: [] for name in runs}
        for turn in range(settings.rounds):
            for name in rotated(runs, turn):
                taken[name].append(seconds(runs[name]))
        draft.metrics["tokens"] = tokens[0]
        draft.extra = {
            "seconds": {name: np.round(values, 3).tolist() for name, values in taken.items()},
            "peak_memory_bytes": {},
        }
        for megabytes in settings.memory_mb:
            text = write_text(documents, megabytes, folder / "text.txt")
            peak = peak_memory(prepare, text, folder / f"corpus-{megabytes:g}")
            draft.extra["peak_memory_bytes"][f"{megabytes:g}"] = peak
    peaks = list(draft.extra["peak_memory_bytes"].values())
    draft.extra["peak_memory_growth"] = round(peaks[-1] / peaks[0] - 1, 4)
    found = ratio_of_totals(taken["slow"], taken["ours"])
    return (
        f"{found['ratio']:.1f} times one slow call a line; "
        f"{100 * draft.extra['peak_memory_growth']:+.1f} % memory for the largest text"
    )
