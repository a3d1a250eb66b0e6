"""Precisions of the settings: what they mean on this machine and to torch."""

import torch

from ..errors import UserError
from ..machine import has_bf16_instructions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Autocast context for a precision of the settings on a device; off for "fp32".

    UserError for a precision that is none.
    """
    precision = usable_precision(precision)
    if precision not in DTYPES:
        raise UserError(f"precision {precision!r}: use auto, {', '.join(DTYPES)}")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
