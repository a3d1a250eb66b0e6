"""Valid input, mutated: keys gone or doubled, wrong types, huge numbers, cut and flipped bytes.

A reader of foreign files gives a result or one line, within 10 s and a gibibyte: see `told`.
"""

import copy
import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import torch
from hypothesis import strategies as st

from distilbert_kit.errors import UserError, one_line
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer

LONG = "in words that were written long ago in another country"
SECONDS = 10
MEMORY = 1 << 30  # bytes that a reader may ask for, beyond what the process has


def _too_slow(number, frame):
    raise TimeoutError(f"no end after {SECONDS} s")


@contextmanager
def bounded(memory=MEMORY):
    """What is done within ends in 10 s and has no more than `memory`: beyond it, none is given."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(read, *arguments, **options):
    """What a reader gives, or None when it refuses in one line; anything else is a failure."""
    try:
        with bounded():
            return read(*arguments, **options)
    except UserError as refused:
        line = str(refused)
        assert line and line == one_line(line)
        return None


SHAPE = create_model_config("tiny", hidden_size=16, num_heads=2, intermediate_size=16)


def save_classifier(folder):
    """A checkpoint of a small classifier with BERT's vocabulary; returns the folder."""
    torch.manual_seed(0)
    DistilBERTForSequenceClassification(SHAPE).save_pretrained(folder, get_tokenizer())
    return folder


def change(path, **keys):
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# --- values that no file should hold ------------------------------------------------------------

SPECIAL = ["\0", "\ud800", "\x1b[2J", "\n", "\u2028", "{x}", "../x", "/dev/zero", "&a", "*a", "'"]
TEXTS = st.text(max_size=20) | st.sampled_from(SPECIAL) | st.sampled_from(["a" * 10_000, ""])
NUMBERS = st.sampled_from(
    [0, -1, 1 << 31, 1 << 63, 10**30, 10**400, 1e308, 5e-324, -0.0]
    + [float(name) for name in ("nan", "inf", "-inf")]
)


def deep(levels):
    """A list in a list in a list."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    ),
    st.integers(2, 90).map(deep),
    st.just([0] * 5000),
)


def _places(value, found=()):
    """The ways to all inner values."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*found, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*found, key))


@st.composite
def mutated(draw, valid, mutations=3):
    """A copy of nested dicts and lists with up to three mutations, or none."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, mutations))):
        places = list(_places(value))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        parent = value
        for key in way:
            parent = parent[key]
        kind = draw(st.sampled_from(["wrong", "wrong", "drop", "move", "rename", "repeat", "nest"]))
        if kind == "wrong":
            parent[last] = copy.deepcopy(draw(WRONG))  # it may be changed in turn
        elif kind == "drop":
            del parent[last]
        elif kind == "move":  # another part of the same file
            other = value
            for key in draw(st.sampled_from(places)):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        elif kind == "nest":
            parent[last] = draw(st.sampled_from([[parent[last]], {"a": parent[last]}]))
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif kind == "rename":
            parent[draw(TEXTS)] = parent.pop(last)
    return value


PIECES = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b'"', b"{", b"[" * 3000]
PIECES += [b"\\ud800", b"NaN", b"1" * 5000, b"&a [*a]", b"\x1b[2J", b"\n\n", b"," * 300, b"-1e999"]


@st.composite
def damaged(draw, content, mutations=4):
    """Bytes with up to four of: a cut, a flipped bit, a slice doubled or gone, a piece put in."""
    for _ in range(draw(st.integers(0, mutations))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["cut", "flip", "double", "remove", "insert", "noise"]))
        if kind == "cut":
            content = content[:start]
        elif kind == "flip" and start < len(content):
            flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        elif kind == "double":
            content = content[:end] + content[start:]
        elif kind == "remove":
            content = content[:start] + content[end:]
        elif kind == "insert":
            content = content[:start] + draw(st.sampled_from(PIECES)) + content[start:]
        elif kind == "noise":
            content = content[:start] + draw(st.binary(max_size=40)) + content[end:]
    return content
