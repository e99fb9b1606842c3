# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A stand-in for a CUDA device: tensors whose device is `cuda`, computed on the CPU, as strict as real ones.

Inside `card()` code that is meant for a GPU runs on any machine. It raises where a GPU would: host and device tensors
in one operation, `numpy()` of a device tensor, an integer matmul. It cannot show errors of kernels and streams.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_securerouter.mpc.ring import device, randomness
from hf_securerouter.mpc.ring import matmul as ring_matmul
from hf_securerouter.mpc.ring import packing_cuda as device_packing


aten = torch.ops.aten
NO_INTEGERS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.mv.default, aten.dot.default}


class CardTensor(torch.Tensor):
    """A tensor on the card; `host` holds its values."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device="meta",  # the device for torch itself, which may have no `cuda`
        )

    def __init__(self, host):
        self.host = host

    @property
    def device(self):
        return torch.device("cuda")

    @property
    def is_cuda(self):
        return True

    @property
    def data(self):
        return self

    def cpu(self):
        return self.host.clone()

    def data_ptr(self):
        return self.host.data_ptr()

    def tolist(self):
        return self.host.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    cards, hosts = {}, []

    def unwrap(value):
        if isinstance(value, CardTensor):
            cards[id(value.host)] = value
            return value.host
        if isinstance(value, torch.Tensor):
            hosts.append(value)
        return type(value)(map(unwrap, value)) if isinstance(value, (list, tuple)) else value

    def wrap(value):
        if isinstance(value, torch.Tensor):
            if id(value) in cards:  # changed in place
                return cards[id(value)]
            return CardTensor(value) if on_card else value
        return type(value)(map(wrap, value)) if isinstance(value, (list, tuple)) else value

    given = [unwrap(value) for value in args]
    named = {
        name: unwrap(value) for name, value in kwargs.items() if name not in ("device", "pin_memory", "non_blocking")
    }
    wanted = kwargs.get("device")
    on_card = bool(cards) if wanted is None else torch.device(wanted).type in ("cuda", "meta")
    if wanted is not None:
        named["device"] = "cpu" if on_card else wanted
    if function is aten.copy_.default:
        on_card = isinstance(args[0], CardTensor)
    elif cards and any(host.dim() for host in hosts):  # a scalar in host memory may meet a tensor on a device
        raise RuntimeError(f"{function} of tensors on both devices: {[tuple(host.shape) for host in hosts]}")
    if cards and function in NO_INTEGERS and not args[0].is_floating_point():
        raise RuntimeError(f"{function} is not implemented for {args[0].dtype} on the card")
    return wrap(function(*given, **named))


class _Card(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Keystream(randomness._DeviceKeystream):
    """The device's keystream, with blocks computed on the CPU."""

    def __init__(self, key, device):
        assert device == "cuda"
        self._cipher = randomness.Cipher(randomness.algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def bytes(self, count):
        made = bytearray(self._cipher.update(bytes(count)))
        return (torch.frombuffer(made, dtype=torch.uint8) if made else torch.empty(0, dtype=torch.uint8)).to("cuda")


_to = torch.Tensor.to


def _to_card(tensor, *args, **options):
    """`Tensor.to`, which would look for a driver before the mode below is called."""
    if str(options.get("device", args[0] if args else None)) == "cuda":
        return tensor if isinstance(tensor, CardTensor) else CardTensor(tensor.clone())
    return _to(tensor, *args, **options)


_tensor = torch.tensor


def _made(values, *args, device=None, **options):
    """`torch.tensor`, which makes its result on a device without the mode below."""
    made = _tensor(values, *args, **options)
    return made if device is None else made.to(torch.device(device).type)


def _one_hot(tensor, classes):
    """`one_hot`, in which torch would treat a card's tensor as one without data."""
    return (tensor.unsqueeze(-1) == torch.arange(classes, device=tensor.device)).to(torch.int64)


class _Generator(torch.Generator):
    """A generator whose draws are on the card."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self):
        return self.place


@contextmanager
def faked_cuda():
    """Replaces the functions of `torch.cuda`; every thread that computes needs `on_card` too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "tensor", _made)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1 << 40, 1 << 40))
        patch.setattr(device, "find_spec", lambda name: name)
        patch.setattr(torch.Tensor, "to", _to_card)
        patch.setattr(torch.nn.functional, "one_hot", _one_hot)
        patch.setattr(randomness, "_DeviceKeystream", _Keystream)
        patch.setattr(ring_matmul, "_chosen", {})
        caches = device._copy, device_packing._places
        for cache in caches:
            cache.cache_clear()
        yield
        for cache in caches:
            cache.cache_clear()  # a real device may be used next


on_card = _Card
