"""The settings of the benchmarks' stages."""

from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator, Field

from ..settings import Strict, later_field

STSB_PAIRS = 1500  # in its dev set, which the benchmarks read


class SpeedSettings(Strict):
    """Table 3 again: batch size 1, CPU, the STS-B dev pairs."""

    pairs: int = Field(gt=0, le=STSB_PAIRS, description="of the dev pairs, evenly by length")
    passes: int = Field(gt=0)
    lengths: list[int] = Field([16, 32, 64, 128, 256, 512])
    length_repeats: int = Field(gt=0)
    file_order_pairs: int = Field(gt=0, le=STSB_PAIRS)


class ShapeSpeedSettings(Strict):
    """Fewer layers against less width, at one number of parameters, as `SpeedSettings`."""

    pairs: int = Field(gt=0, le=STSB_PAIRS, description="of the dev pairs, evenly by length")
    passes: int = Field(gt=0)


class TrainingSpeedSettings(Strict):
    """Fine-tuning throughput beside transformers' Trainer, of given weights."""

    weights: str = later_field("minilm")
    examples: int = Field(gt=0)
    rounds: int = Field(gt=0)


class DistillationSpeedSettings(Strict):
    """A distillation step at paper size beside the textbook's, and both on the recipe's corpus."""

    rounds: int = Field(ge=2)
    updates: int = Field(default=1, gt=0, description="in a round")
    batch_size: int = Field(default=16, gt=0)
    length: int = Field(default=128, ge=8, le=512, description="tokens, all of them real")
    sequences: int = Field(gt=0, description="of the corpus, evenly by length")
    batch_tokens: int = Field(default=1024, ge=512, description="most padded tokens in a bucket")
    corpus_rounds: int = Field(default=2, ge=2)


class CorpusSpeedSettings(Strict):
    """Corpus preparation: speed beside a slow tokenizer, memory at two sizes of the text."""

    source: str = Field(default="docs", description="as prepare_corpus.py --source")
    compared_mb: float = Field(gt=0, description="text for both, 10**6 bytes")
    memory_mb: list[float] = Field(min_length=2, description="from small to large")
    rounds: int = Field(default=2, ge=2)


class QuestionAnsweringSpeedSettings(Strict):
    """Answering SQuAD dev questions beside the usual loop of transformers' examples."""

    questions: int = Field(ge=2, le=10570, description="of the dev set, evenly over the file")
    rounds: int = Field(ge=2)
    batch_size: int = Field(default=8, gt=0, description="of the usual loop")


# What runs an encoder, as it is shown; and of each size the presets of teacher and student.
BACKENDS = {
    "torch_ours": "PyTorch, ours",
    "torch_transformers": "PyTorch, transformers",
    "torch_compiled": "PyTorch, compiled",
    "torch_bf16": "PyTorch, bf16",
    "torch_int8": "PyTorch, int8 (torchao)",
    "onnx_fp32": "ONNX Runtime, fp32",
    "onnx_int8": "ONNX Runtime, int8",
}
ENCODERS = {
    "paper": {"bert": "bert-base-uncased", "distilbert": "distilbert-base-uncased"},
    "study": {"minilm": "MiniLM-L6", "distilminilm": "DistilMiniLM-L3"},
}


def _one_of(names: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"no {name!r}: choose from {', '.join(names)}")
        return name

    return AfterValidator(check)


class LatencySettings(Strict):
    """Latency of teacher and student by backend, length, batch and threads."""

    sizes: list[Annotated[str, _one_of(ENCODERS)]] = Field(list(ENCODERS), min_length=1)
    backends: list[Annotated[str, _one_of(BACKENDS)]] = Field(
        list(BACKENDS),
        min_length=1,
        description="the first is what outputs are held against",
    )
    lengths: list[int] = Field([16, 64, 128, 512], min_length=1)
    batches: list[int] = Field([1, 32], min_length=1)
    seconds: float = Field(gt=0, description="of each model and backend, at each point")
    least_rounds: int = Field(default=3, gt=0)
    most_rounds: int = Field(default=200, gt=0)
    longest_call: float = Field(
        default=3.0, gt=0, description="seconds; longer ones are not measured"
    )
    texts: int = Field(default=64, gt=0, le=STSB_PAIRS, description="dev pairs, in file order")
    text_length: int = Field(
        default=128, ge=8, le=512, description="tokens of the text timed end to end"
    )
