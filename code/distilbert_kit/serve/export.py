"""Fine-tuned models as ONNX graphs, in fp32 and with dynamic int8, run by ONNX Runtime.

Dynamic int8: weights are stored in 8 bits (linear layers with a scale per output channel,
embeddings with one), activations are rounded as they come, with one scale per tensor. PyTorch's
own quantisation is deprecated and its saved models are tied to the version that wrote them
(torch.ao.quantization, see pytorch/ao#2259); an ONNX graph is one file that reloads anywhere.
Layers whose activations 8 bits are too coarse for stay in fp32 (`coarse_layers`).
The packages of the extra `serve` are imported where a graph is made or read: weights need none.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from ..data.batches import MODEL_INPUTS, Batch, TokenDataset, model_inputs
from ..errors import UserError
from ..files import check_unchanged, replacing_folder
from ..models.checkpoints import Pretrained, disk_errors, has_weights, read_weights, weight_files
from ..models.hub_layout import HubModel, hub_config, read_config

FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}  # the names that Optimum reads
OPSET = 20  # the first with GELU as one node; 23's Attention node refuses a mask of keys only
LINEAR = ("MatMul", "Gemm")
QUANTISED = (*LINEAR, "Gather")  # linear layers and embeddings

# Chosen on 32 training rows of four models of 6 and 12 layers (SST-2, RTE, MRPC): their layers lie
# below 0.18 or above 0.26. One dev score had been seen before, that of a student on SST-2.
TOO_COARSE = 0.2
CALIBRATION_ROWS = 100

# The outputs of a graph, by `hub_class`: logits [B, C], or of start and end of the answer [B, L].
OUTPUTS = {
    "ForSequenceClassification": ["logits"],
    "ForQuestionAnswering": ["start_logits", "end_logits"],
}


class _Logits(nn.Module):
    """A model as a graph sees it: tensors by position in, those of its outputs out."""

    def __init__(self, model: HubModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(output[name] for name in OUTPUTS[self.model.hub_class])


def export_onnx(model: HubModel, path: Path) -> None:
    """Write a model as an fp32 graph that takes any batch size and length."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names = ["input_ids", "attention_mask"]
    if model.config.type_vocab_size:
        names.append("token_type_ids")
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    logger = logging.getLogger("torch.onnx")  # warns of optional packages that we do not use
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside of the exporter
            program = torch.onnx.export(
                _Logits(model, names).eval(),
                example,
                input_names=names,
                output_names=OUTPUTS[model.hub_class],
                dynamic_shapes=[tuple(free for _ in names)],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    program = cast(torch.onnx.ONNXProgram, program)  # as always with dynamo
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    program.save(path)


def calibration_rows(dataset: TokenDataset) -> list[Batch]:
    """Some rows of a training set, drawn with a fixed seed, each a batch of its own."""
    chosen = np.random.default_rng(0).permutation(len(dataset))[:CALIBRATION_ROWS]
    return [model_inputs(dataset.collate([dataset[int(row)]])) for row in chosen]


def coarse_layers(source: Path, rows: Sequence[Batch]) -> dict[str, float]:
    """Linear layers whose inputs 8 bits are too coarse for: how far rounding moves them, by node.

    The activations of a sequence share one scale. Where a few are a hundred times as large as the
    rest, the rest is rounded to nothing (arXiv 2208.07339, section 4). Measured is the length of
    the change of a token's input over that of the input, root mean square over the tokens of
    `rows`, batches of one sequence [1, L]; a layer is coarse above `TOO_COARSE`.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(source)
    weights = {tensor.name for tensor in graph.graph.initializer}
    layers = {
        node.name: node.input[0]
        for node in graph.graph.node
        if node.op_type in LINEAR and node.input[1] in weights
    }
    inputs = list(dict.fromkeys(layers.values()))
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inputs)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    moved: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    for row in tqdm(rows, desc="calibrating", unit="row", leave=False, mininterval=1):
        zeros = torch.zeros_like(row["input_ids"])  # token types, where the tokenizer gives none
        given = {each.name: row.get(each.name, zeros).numpy() for each in session.get_inputs()}
        found = cast(list[np.ndarray], session.run(inputs, given))
        for name, states in zip(inputs, found, strict=True):
            scale = (max(states.max(), 0) - min(states.min(), 0)) / 255 or 1
            change = states - scale * np.round(states / scale)
            moves, lengths = (np.linalg.norm(each, axis=-1) for each in (change, states))
            moved[name].append(np.divide(moves, lengths, where=lengths > 0, out=0 * moves).ravel())
    far = {name: float(np.sqrt(np.mean(np.concatenate(m) ** 2))) for name, m in moved.items()}
    return {node: far[name] for node, name in layers.items() if far[name] > TOO_COARSE}


def quantize_onnx(source: Path, target: Path, in_fp32: Iterable[str]) -> None:
    """Write the fp32 graph `source` with int8 weights and dynamic int8 activations.

    The nodes `in_fp32` stay as they are. The weights use 7 of their 8 bits: a processor without
    VNNI adds two products in 16 bits, which full ones overflow without a word (onnxruntime's guide
    to quantisation, "reduce_range").
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load(source)
    graph.graph.ClearField("value_info")  # shapes that the quantiser would contradict
    add_pre_process_metadata(graph)  # folded and simplified already, by the exporter
    quantize_dynamic(
        graph,
        target,
        op_types_to_quantize=QUANTISED,
        nodes_to_exclude=list(in_fp32),
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )


def write_onnx(
    model: HubModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Batch] = (),
) -> dict[str, float]:
    """Write both graphs, `config.json` and the tokenizer's files into a folder that is there.

    Returns the `coarse_layers` on `rows`, which the int8 graph keeps in fp32: none without rows.
    """
    hub_config(model).save_pretrained(folder)
    with disk_errors(folder):
        tokenizer.save_pretrained(folder)
    graph = folder / FILES["fp32"]
    export_onnx(model, graph)
    coarse = coarse_layers(graph, rows) if rows else {}
    quantize_onnx(graph, folder / FILES["int8"], coarse)
    return coarse


def save_onnx(model: HubModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`write_onnx`, atomically: a folder with all of it takes the place of `folder`."""
    with replacing_folder(Path(folder)) as temporary:
        write_onnx(model, temporary, tokenizer)


class OnnxModel(HubModel):
    """A graph saved by `save_onnx`, called like the model it was; uses torch's number of threads.

    With "int8", activations share one scale per tensor, padding and neighbours included. So that
    logits depend on nothing else, `run_in_buckets` makes every sequence a batch of its own.
    """

    def __init__(self, folder: str | Path, precision: str = "int8"):
        super().__init__()
        self.path = Path(folder) / FILES[precision]
        if not self.path.is_file():
            raise UserError(f"{self.path}: missing; write it with quantize.py")
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(
                f"{self.path}: needs onnxruntime; install distilbert-kit[serve]"
            ) from None
        self.config, self.labels, self.multi_label, _ = read_config(Path(folder))
        self.num_labels = len(self.labels)
        self.batch_tokens = 1 if precision == "int8" else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised, which says it once
        # Idle threads that spin would take the cores from whatever runs between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                self.path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(
                f"{self.path}: not a readable ONNX graph ({type(error).__name__}); write it again"
            ) from None
        check_unchanged(Path(folder), FILES[precision])
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.outputs = [given.name for given in self.session.get_outputs()]
        known = set(self.inputs) <= set(MODEL_INPUTS)
        if not (known and set(self.outputs) in map(set, OUTPUTS.values())):
            raise UserError(
                f"{self.path}: not the graph of a model of this kit (inputs "
                f"{', '.join(self.inputs)}; outputs {', '.join(self.outputs)}); write it again"
            )

    def forward(self, **batch: Tensor) -> SequenceClassifierOutput | QuestionAnsweringModelOutput:
        """Logits by their names in `OUTPUTS`, of ids, mask (and token types) [B, L].

        Raises UserError for longer sequences than the model takes, and for a graph that fails or
        gives logits of another shape.
        """
        (rows, length), most = batch["input_ids"].shape, self.config.max_length
        if length > most:
            raise UserError(f"a sequence of {length} tokens: this model takes {most}; cut it")
        if "token_type_ids" not in batch:  # all of the first type, as the model has it
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        try:
            found = self.session.run(None, {name: batch[name].numpy() for name in self.inputs})
            tensors = dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))
        except Exception as error:  # onnxruntime's have no common class
            raise UserError(f"{self.path}: the graph fails ({error}); write it again") from None
        wanted = (rows, self.num_labels if "logits" in tensors else length)
        for name, tensor in tensors.items():
            if tensor.shape != wanted:
                raise UserError(
                    f"{self.path}: the shape of its {name} is {tuple(tensor.shape)}, not {wanted} "
                    "as its inputs and its config.json say; write both again"
                )
        if "logits" in tensors:
            return SequenceClassifierOutput(logits=tensors["logits"])
        return QuestionAnsweringModelOutput(
            start_logits=tensors["start_logits"], end_logits=tensors["end_logits"]
        )


def load_fine_tuned(kind: type[Pretrained], folder: Path) -> HubModel:
    """The model of a folder: its int8 graph, unless weights are there too."""
    if not has_weights(folder) and (folder / FILES["int8"]).is_file():
        return OnnxModel(folder)
    return kind.from_pretrained(folder, require_head=True)


def size_on_disk(place: Path) -> dict[str, int]:
    """Bytes and parameters of a checkpoint's folder or of a graph, counted in the files."""
    if place.is_file():
        return {"bytes": place.stat().st_size} | count_onnx_parameters(place)
    return {
        "bytes": sum(path.stat().st_size for path in weight_files(place)),
        "parameters": sum(tensor.numel() for tensor in read_weights(place).values()),
    }


def count_onnx_parameters(path: Path) -> dict[str, int]:
    """Weights that a graph stores, counted one by one in the file.

    Returns {"parameters", "parameters_int8", "scales"}: all weights, those of them in 8 bits, and
    the scales and zero points beside them, which are not weights. Constants of the graph (shapes,
    factors) are integers or single numbers and count for nothing.
    """
    import onnx

    counts = {"parameters": 0, "parameters_int8": 0, "scales": 0}
    for tensor in onnx.load(path).graph.initializer:
        size = math.prod(tensor.dims)
        if tensor.name.endswith(("_scale", "_zero_point")):
            counts["scales"] += size
        elif tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            counts["parameters"] += size
            counts["parameters_int8"] += size
        elif tensor.data_type == onnx.TensorProto.FLOAT and (
            size > 1 or tensor.name.endswith("bias")
        ):
            counts["parameters"] += size
    return counts
