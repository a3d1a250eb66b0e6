"""What a run did so far, and its state on disk: one file that appears whole."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..errors import UserError
from ..files import replacing_file, write_atomically
from ..foreign import parse_json
from ..models.checkpoints import read_checked, with_hash, write_safetensors

CHECKPOINT = "state.safetensors"  # one file: two could be of different updates
HISTORY = "history.jsonl"  # beside it, to look at while a training of days goes on


@dataclass
class TrainingResult:
    """What a run did. `history` has a row every 10 updates: update, learning rate of the next one,
    mean of each term since the last row, validation losses where they were asked for; `recent` has
    the terms of the updates since then."""

    precision: str
    updates: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    recent: dict[str, list[float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict:
        """What was done: equal in equal runs."""
        return {
            "train_examples": self.examples,
            "train_tokens": self.tokens,
            "updates": self.updates,
            "history": self.history,
        }

    @property
    def speed(self) -> dict[str, float | str]:
        """How fast it was, and in which precision."""
        return {
            "precision": self.precision,
            "train_seconds": round(self.seconds, 2),
            "train_examples_per_second": round(self.examples / self.seconds, 1),
            "train_tokens_per_second": round(self.tokens / self.seconds, 1),
        }


def _differences(old: dict, new: dict) -> list[str]:
    """The names of what differs in two identities, settings one by one."""
    flat = [
        {k: v for k, v in of.items() if k != "settings"} | of.get("settings", {})
        for of in (old, new)
    ]
    names = sorted(flat[0].keys() | flat[1].keys())
    return [name for name in names if flat[0].get(name) != flat[1].get(name)]


_POSITION = {"identity", "scheduler_epoch", "result", "param_groups"}


def read_position(folder: Path) -> dict:
    """Where the checkpoint in `folder` stands: identity, scheduler, result, parameter groups."""
    try:
        with safe_open(folder / CHECKPOINT, "pt") as file:
            position = parse_json((file.metadata() or {}).get("position", ""))
        whole = isinstance(position, dict) and position.keys() >= _POSITION
        if not (whole and isinstance(position["identity"], dict)):
            raise ValueError("no position in the training")
        return position
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{folder}: not a readable checkpoint ({error}); delete it") from None


def cut_history(folder: Path, rows: int) -> None:
    """Keep the first rows of the file in `folder`: the run that goes on makes the others again."""
    path = folder / HISTORY
    if path.exists():
        write_atomically(path, b"".join(path.read_bytes().splitlines(keepends=True)[:rows]))


def append_history(folder: Path, row: dict[str, float]) -> None:
    """Add a row to the file in `folder`, as a line of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / HISTORY, "a") as file:
        file.write(json.dumps(row) + "\n")


# torch's module of state dicts is imported where it is used: it takes seconds.
_FULL: dict[str, Any] = {"full_state_dict": True, "cpu_offload": True}  # gathers sharded state too


@dataclass
class TrainingState:
    """All that a run which was cut off goes on from.

    `run` is what decides its result; `optimizer` the one that accelerate wraps: torch steps what it
    is given, to make its state, and the wrapper would ask for a scaled loss. The random state
    follows from the position.
    """

    run: dict
    step: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    result: TrainingResult
    accelerator: Accelerator

    def save(self, folder: Path) -> None:
        """Write one file that appears whole. All processes gather sharded state; one writes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        states = get_state_dict(self.step, self.optimizer, options=StateDictOptions(**_FULL))
        model_state, optimizer_state = cast(tuple[dict[str, Tensor], dict[str, Any]], states)
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model/{name}": value for name, value in model_state.items()}
        for parameter, state in optimizer_state["state"].items():
            tensors |= {f"optimizer/{parameter}/{name}": value for name, value in state.items()}
        scaler = self.accelerator.scaler
        position = {
            "identity": self.run,
            "scheduler_epoch": self.scheduler.last_epoch,
            "result": vars(self.result),
            "param_groups": optimizer_state["param_groups"],
            "scaler": scaler and scaler.state_dict(),
        }
        with replacing_file(folder / CHECKPOINT) as temporary:
            metadata = with_hash(tensors, position=json.dumps(position))
            write_safetensors(tensors, temporary, **metadata)

    def resume(self, folder: Path) -> None:
        """Load the file in `folder`, if there is one; UserError for one of another run."""
        if not (folder / CHECKPOINT).exists():
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        position = read_position(folder)
        if different := _differences(position["identity"], self.run):
            raise UserError(
                f"{folder}: the checkpoint is of another run ({', '.join(different)} differ); "
                "delete it, or choose another folder"
            )
        tensors, _ = read_checked(folder / CHECKPOINT)
        model_state, optimizer_state = {}, {"state": {}, "param_groups": position["param_groups"]}
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "model":
                model_state[name] = tensor
            elif kind == "optimizer":
                parameter, quantity = name.rsplit("/", 1)
                optimizer_state["state"].setdefault(parameter, {})[quantity] = tensor
        set_state_dict(
            self.step,
            self.optimizer,
            model_state_dict=model_state,
            optim_state_dict=optimizer_state,
            options=StateDictOptions(**_FULL),
        )
        vars(self.result).update(position["result"])
        self.scheduler.last_epoch = position["scheduler_epoch"]
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self.accelerator.scaler is not None and position.get("scaler"):
            self.accelerator.scaler.load_state_dict(position["scaler"])
