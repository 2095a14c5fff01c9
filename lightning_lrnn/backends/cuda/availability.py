"""Whether kernels can be compiled and run here."""

from __future__ import annotations

from functools import cache

import torch

from lightning_lrnn.backends.cuda import nvrtc

__all__ = ["missing"]


def missing() -> list[str]:
    """Why kernels cannot run here, with the remedies; [] = they can. Initialises no device."""
    return [*_pytorch_lacks(), *nvrtc.missing(), *_too_old()]


@cache
def _pytorch_lacks() -> tuple[str, ...]:
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) is built without CUDA: "
            "install a CUDA build (https://pytorch.org/get-started)",
        )
    if torch.cuda.device_count() == 0:
        return ("PyTorch sees no CUDA device: look at nvidia-smi and CUDA_VISIBLE_DEVICES",)
    return ()


def _too_old() -> list[str]:
    """Why NVRTC cannot compile for this process's devices, if for none of them it can."""
    if not torch.cuda.is_initialized():
        return []  # asking would initialise them; the first launch says the same
    return list(_too_old_for_all())


@cache
def _too_old_for_all() -> tuple[str, ...]:
    if nvrtc.missing():
        return ()
    devices = range(torch.cuda.device_count())
    capabilities = dict.fromkeys(map(torch.cuda.get_device_capability, devices))
    reasons = [nvrtc.missing_for(capability) for capability in capabilities]
    return tuple(reasons[0]) if reasons and all(reasons) else ()
