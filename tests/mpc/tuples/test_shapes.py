# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Shapes on meta tensors, compared with PyTorch's own."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.tuples.shapes import MetaShapes


DTYPES = st.sampled_from([torch.uint8, torch.int64, torch.float64])
OPERATIONS = {
    "add": lambda x, y: x + y,
    "add a number": lambda x, y: x + 3,
    "from a number": lambda x, y: 3 - x,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "neg": lambda x, y: -x,
    "and": lambda x, y: x.to(torch.int64) & y.to(torch.int64),
    "xor a number": lambda x, y: x.to(torch.uint8) ^ 1,
    "or": lambda x, y: x.to(torch.uint8) | y.to(torch.int64),
    "shift": lambda x, y: x.to(torch.int64) >> 2 << 1,
    "compare": lambda x, y: x >= y,
    "equal to a number": lambda x, y: x == 0,
    "where": lambda x, y: torch.where(x > 0, x, y),
    "where a number": lambda x, y: torch.where(x > 0, x, 0),
    "in place": lambda x, y: x.add_(x),
    "and in place": lambda x, y: x.to(torch.int64).bitwise_and_(1),
    "negative in place": lambda x, y: x.neg_(),
    "zeros": lambda x, y: torch.zeros_like(x),
    "stack": lambda x, y: torch.stack([x, x], -1),
    "stack first": lambda x, y: torch.stack([x, x.to(torch.int64), x]),
    "cat": lambda x, y: torch.cat([x, x], -1),
    "sum": lambda x, y: x.sum(-1),
    "sum that keeps": lambda x, y: x.sum(0, keepdim=True),
    "sum of all": lambda x, y: x.sum(),
    "take rows": lambda x, y: x.index_select(-1, torch.zeros(5, dtype=torch.int64, device=x.device)),
    "gather": lambda x, y: x.gather(-1, torch.zeros((*x.shape[:-1], 7), dtype=torch.int64, device=x.device)),
    "matmul": lambda x, y: x[..., None].expand(*x.shape, 4).transpose(-1, -2) @ x[..., None].expand(*x.shape, 2),
    "matmul of vectors": lambda x, y: x[0] @ x[0] if x.dim() == 2 else x,
}  # fmt: skip


@settings(max_examples=400)
@given(
    operation=st.sampled_from(sorted(OPERATIONS)),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    ones=st.integers(0, 7),
    dtypes=st.tuples(DTYPES, DTYPES),
)
def test_shape_and_type_are_those_of_pytorch(operation, shape, ones, dtypes):
    other = [1 if ones >> index & 1 else size for index, size in enumerate(shape)][ones % len(shape) :]
    function = OPERATIONS[operation]
    expected = function(torch.ones(shape, dtype=dtypes[0]), torch.ones(other, dtype=dtypes[1]))
    x, y = (torch.empty(sizes, dtype=kind, device="meta") for sizes, kind in zip((shape, other), dtypes, strict=True))
    with MetaShapes():
        found = function(x, y)
    assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")


def test_tensors_with_data_are_computed():
    with MetaShapes():
        assert (torch.arange(3) + 1).tolist() == [1, 2, 3]
        assert torch.cat([torch.arange(2), torch.arange(1)]).tolist() == [0, 1, 0]


def test_shapes_that_do_not_broadcast_are_refused():
    with MetaShapes(), pytest.raises(ValueError, match=r"shapes \(3,\), \(2,\) do not broadcast"):
        torch.empty(3, device="meta") + torch.empty(2, device="meta")


def test_a_plan_is_traced_without_the_compiler():
    code = """
import sys, torch
from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.tuples.plan import trace
x = torch.empty(4, dtype=torch.int64, device="meta")
trace(lambda party: Activation("gelu", (4,), 5, 12, 14, 38).run(party, party.secret(x, 38, 14, 5)))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr
