"""DistilBERT and its teacher, distillation, and a reproduction study of arXiv 1910.01108.

The public names below are loaded when they are first used: importing the kit takes no time and
no torch.
"""

import os

import lazy_loader

# Nothing is told to anybody: these libraries report by default, and read this when imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
