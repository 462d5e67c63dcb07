"""AdamW whose moments stay in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer.distributed import local

_MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW that keeps its moments on the host, and brings those of one parameter at a time to the device.

    The arithmetic is AdamW's own, on the device, so weights are the same to the bit. Of the moments' 8 bytes per
    parameter the device holds those of one matrix; they travel once in each direction a step.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        groups = self.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.param_groups = [group | {"params": [parameter]}]
                        self._step_one(parameter)
        finally:
            self.param_groups = groups
        _wait_for_the_device()  # the moments have arrived, whoever reads them next

    def _step_one(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        on_host = {name: state[name] for name in _MOMENTS if name in state}  # nothing before the first step
        state.update({name: x.to(parameter.device, non_blocking=True) for name, x in on_host.items()})
        super().step()
        for name in _MOMENTS:
            if name not in on_host:
                on_host[name] = _on_host(state[name])
            else:
                local(on_host[name]).copy_(local(state[name]), non_blocking=True)
        state.update(on_host)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the moments where they are; the base class would bring all of them to the device at once."""
        ours, theirs = self.param_groups, state_dict["param_groups"]
        parameters, names = (chain.from_iterable(group["params"] for group in groups) for groups in (ours, theirs))
        for parameter, name in zip(parameters, names, strict=True):
            self.state[parameter] = state = dict(state_dict["state"][name])
            state.update({name: _on_host(state[name]) for name in _MOMENTS if name in state})
            if parameter.is_cuda:
                state["step"] = state["step"].to(parameter.device)  # where the fused form wants it
        for group, loaded in zip(ours, theirs, strict=True):
            group.update({key: value for key, value in loaded.items() if key != "params"})
        _wait_for_the_device()


def _wait_for_the_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _on_host(moment: Tensor) -> Tensor:
    """A copy whose local part, next to a GPU, is in memory that it reaches by itself: several times as fast. From a GPU
    it is there when the device has been waited for."""
    if local(moment).is_cuda:
        return moment.to("cpu", non_blocking=True)  # that is where torch puts what nobody waits for
    copy = moment.to("cpu", copy=True)
    if torch.cuda.is_available():
        pinned = local(copy).pin_memory()
        if not isinstance(copy, DTensor):
            return pinned
        copy._local_tensor = pinned
    return copy
