"""Running a model over a data set in length buckets."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils.generic import ModelOutput

from ..data.batches import (
    LengthBatchSampler,
    TokenDataset,
    create_dataloader,
    model_inputs,
)
from ..errors import UserError
from ..files import write_atomically
from ..machine import has_bf16_instructions, keeping_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@keeping_freed_memory()
def run_in_buckets(
    model: nn.Module,
    dataset: TokenDataset,
    receive: Callable[[list[int], ModelOutput], None],
    *,
    precision: str = "fp32",
    batch_tokens: int | None = None,
    description: str = "predicting",
) -> None:
    """Run a model over a data set in length buckets; `receive` gets row numbers and outputs.

    `batch_tokens` padded tokens make a batch: by default those of the model, if it says so, else
    few on a CPU, where a batch's states should stay in the cache, and many on a GPU.
    """
    # An ONNX graph (serve/export.py) shows no parameters; it runs on the CPU.
    device = next(model.parameters(), torch.empty(0)).device
    batch_tokens = batch_tokens or getattr(model, "batch_tokens", None)
    batch_tokens = batch_tokens or (1024 if device.type == "cpu" else 32768)
    sampler = LengthBatchSampler(dataset.lengths, len(dataset), batch_tokens, shuffle=False)
    bar = tqdm(total=len(dataset), desc=description, unit="ex", delay=1, mininterval=1, leave=False)
    model.eval()
    plan = list(sampler)
    with torch.inference_mode(), autocast(device, precision):
        for indices, batch in zip(plan, create_dataloader(dataset, plan), strict=True):
            inputs = {name: value.to(device) for name, value in model_inputs(batch).items()}
            output = model(**inputs)
            if not all(logits.isfinite().all() for logits in output.values()):
                raise UserError(
                    f"the model's outputs are not finite in precision {precision}: use fp32, or "
                    "look at its weights"
                )
            receive(indices, output)
            bar.update(len(indices))
    bar.close()


def usable_precision(precision: str) -> str:
    """The precision itself, or what "auto" means on this machine.

    It is bf16 where the device multiplies bf16 in hardware, else fp32.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if has_bf16_instructions() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for a precision of the settings on a device; off for "fp32"."""
    precision = usable_precision(precision)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def save_predictions(path: Path, frame: pd.DataFrame) -> None:
    """Write per-example rows as parquet, atomically."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    write_atomically(path, buffer.getvalue())
