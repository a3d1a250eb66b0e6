"""Running a model over a data set in length buckets."""

from collections.abc import Callable

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
from ..errors import NonFiniteError
from ..machine import keeping_freed_memory
from .precision import autocast


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
                advice = "use fp32, or " if precision != "fp32" else ""
                raise NonFiniteError(
                    f"the model's outputs are not finite in precision {precision}; {advice}look "
                    "at its weights and at the learning rate of their training"
                )
            receive(indices, output)
            bar.update(len(indices))
    bar.close()
