# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Shapes of results on meta tensors, found without PyTorch's own rules for them.

PyTorch finds the shape of `x + y` on meta tensors in Python, after it has loaded its compiler: a second for the first
operation, and a fifth of a millisecond for each. Plans need a few elementwise operations only, thousands of times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


_ARITHMETIC = frozenset(
    "add sub __rsub__ mul neg __and__ __xor__ __or__ __rand__ __rxor__ __ror__ __lshift__ __rshift__ where".split()
)
_COMPARISONS = frozenset("eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__".split())
_IN_PLACE = frozenset(
    "add_ sub_ mul_ neg_ addcmul_ bitwise_and_ bitwise_or_ bitwise_xor_ __ilshift__ __irshift__".split()
)


class MetaShapes(TorchFunctionMode):
    """Inside this context, elementwise operations, `matmul`, `gather`, `stack` and `cat` on meta
    tensors give empty meta tensors.

    Example:
        >>> x = torch.empty(3, 1, dtype=torch.int64, device="meta")
        >>> with MetaShapes():
        ...     (x + x.T).shape
        torch.Size([3, 3])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if not kwargs and name in _ARITHMETIC | _COMPARISONS:
            tensors = [value for value in args if isinstance(value, Tensor)]
            if any(tensor.is_meta for tensor in tensors):
                dtype = torch.bool if name in _COMPARISONS else _dtype(args[1:] if name == "where" else args)
                return _empty(_broadcast(*(tensor.shape for tensor in tensors)), dtype)
        elif name in _IN_PLACE and args[0].is_meta:
            return args[0]
        elif name == "zeros_like" and args[0].is_meta and not kwargs:
            return _empty(args[0].shape, args[0].dtype)
        elif name == "gather" and args[0].is_meta:
            return _empty(args[2].shape, args[0].dtype)
        elif name == "index_select" and args[0].is_meta:
            source, dim, index = args
            return _empty((*source.shape[:dim], len(index), *source.shape[dim:][1:]), source.dtype)
        elif name == "sum" and args[0].is_meta and len(args) == 2 and isinstance(args[1], int):
            return _summed(*args, **(kwargs or {}))
        elif name in ("matmul", "__matmul__") and args[0].is_meta and min(args[0].dim(), args[1].dim()) >= 2:
            batch = _broadcast(args[0].shape[:-2], args[1].shape[:-2])
            return _empty((*batch, args[0].shape[-2], args[1].shape[-1]), args[0].dtype)
        elif name in ("stack", "cat") and args[0][0].is_meta:
            return _joined(name, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _broadcast(*shapes: Sequence[int]) -> list[int]:
    """The shape to which all `shapes` broadcast."""
    sizes: list[int] = []
    for column in itertools.zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        wide = set(column) - {1}
        if len(wide) > 1:
            raise ValueError(f"The shapes {', '.join(str(tuple(shape)) for shape in shapes)} do not broadcast.")
        sizes.append(wide.pop() if wide else 1)
    return sizes[::-1]


def _dtype(operands: Sequence[Any]) -> torch.dtype:
    return torch.result_type(*operands) if len(operands) == 2 else operands[0].dtype


def _joined(name: str, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape, dtype = list(tensors[0].shape), tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if name == "stack":
        shape.insert(dim % (len(shape) + 1), len(tensors))
    else:
        shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return _empty(shape, dtype)


def _summed(tensor: Tensor, dim: int, keepdim: bool = False, dtype: torch.dtype = torch.int64) -> Tensor:
    shape = list(tensor.shape)
    shape[dim : len(shape) + dim + 1 if dim < 0 else dim + 1] = [1] * keepdim
    return _empty(shape, tensor.dtype if tensor.is_floating_point() else dtype)
