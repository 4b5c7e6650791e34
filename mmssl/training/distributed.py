"""The processes of one run: device, precision, and the few numbers they must agree on."""

import contextlib
import os
import random
import shutil
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from mmssl.errors import MmsslError

Precision = Literal["auto", "fp32", "bf16"]


class Processes:
    """accelerate's view of this process among its fellows: one without a launcher, many under torchrun or Slurm.

    Args:
        device: "auto" takes accelerate's choice; otherwise the kind of device.
        precision: "auto" is bf16 where the device multiplies in it by itself, fp32 elsewhere.
    """

    def __init__(self, device: str = "auto", precision: Precision = "auto"):
        _forget_other_device(device)
        self._accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.world = self._accelerator.num_processes
        self.is_main = self._accelerator.is_main_process
        if device not in ("auto", self.device.type):
            raise MmsslError(f"device {device!r} was asked for and {self.device.type!r} is what is here.")
        self.dtype = _dtype(self.device, precision)
        # A second, CPU-side channel: agreeing on it makes no process wait for its GPU.
        many = self.world > 1 and self.device.type != "cpu"
        self._channel = torch.distributed.new_group(backend="gloo") if many else None

    def wrap(self, model: nn.Module, compiled: bool) -> nn.Module:
        """The model as the loop calls it: compiled if asked for, gradients averaged over the processes if many."""
        return self._accelerator.prepare_model(torch.compile(model) if compiled else model)

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def no_sync(self, model: nn.Module, hold: bool) -> contextlib.AbstractContextManager:
        """Context of a forward and backward whose gradients stay in this process if `hold`."""
        return self._accelerator.no_sync(model) if hold and self.world > 1 else contextlib.nullcontext()

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch's tensors on the device, without waiting for the copy."""
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the processes, on the device."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, values: list[float]) -> list[float]:
        """Element-wise largest of the processes' `values`: what one of them asks for, all do."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=self._channel)
        return shared.tolist()

    def share(self, value: Any) -> Any:
        """What the main process has as `value`, in every process."""
        holder = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(holder)
        return holder[0]

    def wait(self) -> None:
        """Wait for every process."""
        if self.world > 1:
            self._accelerator.wait_for_everyone()


def _forget_other_device(device: str) -> None:
    """accelerate keeps the first device for the life of the process; without fellows there is nothing to keep."""
    shared = PartialState._shared_state
    if shared and shared["num_processes"] == 1 and shared["_cpu"] != (device == "cpu"):
        AcceleratorState._reset_state(reset_partial_state=True)


def _dtype(device: torch.device, precision: Precision) -> torch.dtype:
    if precision == "fp32":
        return torch.float32
    native = multiplies_bf16(device)
    if precision == "auto":
        return torch.bfloat16 if native else torch.float32
    if device.type == "cuda" and not native:
        raise MmsslError(f"{torch.cuda.get_device_name(device)} does not compute in bf16; use loop.precision fp32.")
    return torch.bfloat16


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 products of its own: emulated ones are slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def can_compile() -> bool:
    """True if the compiler that torch.compile needs is found: any C++ one."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None or shutil.which("clang++") is not None


def seed_all(seed: int) -> None:
    """Seed torch on every device, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
