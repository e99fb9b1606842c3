# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Gates of real functions, compared with float64 within the error bounds of their docstrings."""

import math

import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.gates.activation import _SHAPES, Activation
from hf_securerouter.mpc.gates.exponential import EXP_SCALE, Exponential
from hf_securerouter.mpc.gates.row_function import RowFunction
from tests.support.harness import Input, run


EXACT = {
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "reciprocal": torch.reciprocal,
    "inverse_sqrt": torch.rsqrt,
}
ERROR = {"gelu": 8e-4, "silu": 5e-4, "tanh": 4.5e-4, "reciprocal": 5.2e-4, "inverse_sqrt": 2e-4}


def around(points, unit):
    """Every point, and the values one and two units to its sides."""
    return torch.tensor([point + step * unit for point in points for step in (-2, -1, 0, 1, 2)], dtype=torch.float64)


def rounded(values, scale):
    return torch.round(values * 2**scale) / 2**scale


@pytest.mark.parametrize(
    ("bound", "scale", "result_scale", "width"), [(5, 12, 14, 38), (3, 12, 12, 20), (7, 10, 16, 48)]
)
@pytest.mark.parametrize("function", ["gelu", "silu", "tanh"])
def test_activation_keeps_its_error(function, bound, scale, result_scale, width):
    top = 2.0**bound - 2.0 ** (1 - scale)
    edge = {"gelu": 3.75, "silu": 11.0, "tanh": 5.0}[function]
    if function == "silu" and bound < 4:
        bound, width = 4, 21
    x = torch.cat([
        around([0, edge, -edge, edge + 0.25, -edge - 0.25, 8, -8, 1, -1], 2.0**-result_scale),
        torch.tensor([top, -top], dtype=torch.float64),
        torch.linspace(-min(12, top), min(12, top), 4001, dtype=torch.float64),
        (torch.rand(4000, dtype=torch.float64) * 2 - 1) * top,
    ]).clamp(-top, top).repeat(3)  # fmt: skip
    x = rounded(x, result_scale)
    gate = Activation(function, tuple(x.shape), bound, scale, result_scale, width)
    share = Input.real(x, gate.input_width, result_scale, bound)
    done = run(lambda party: gate.run(party, share(party)))
    # x is rounded to `scale` bits at random, up or down, before a function of slope up to 1.13; the straight part
    # counts x in whole units of that scale; words, truncation and result are rounded to `result_scale`.
    allowed = ERROR[function] + 1.13 * 2.0**-scale + 2 * 2.0**-result_scale
    error = (done.values - EXACT[function](x)).abs()
    assert float(error.max()) < allowed, x[error.argmax()]
    if function == "gelu":
        # The bound above holds where GeLU is cut off to 0; its polynomial, which decides the error of an encoder, is
        # closer. Words and public factors are rounded, too, which adds some 2^-13 at most.
        curved = error[x.abs() < 3.5]
        assert float(curved.max()) < 1.2e-4 + 1.13 * 2.0**-scale + 2 * 2.0**-result_scale + 2.0**-13
    assert {(part.width, part.scale) for part in done.results} == {(width, result_scale)}
    assert {part.bound for part in done.results} == {1 if function == "tanh" else bound}


@pytest.mark.parametrize("function", ["gelu", "silu", "tanh"])
def test_the_coefficients_are_nearly_minimax(function):
    """A fit by Lawson's reweighting gives the same coefficients."""
    shape = _SHAPES[function]
    edge, count = shape.half_window / 4, shape.harmonics
    x = edge * torch.cos(math.pi * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    angles = 2 * math.pi / 2**shape.period_bits * x[:, None] * torch.arange(1, count + 1)
    basis = torch.cat([torch.ones_like(x)[:, None], torch.cos(angles), torch.sin(angles)], 1)
    values, weights = EXACT[function](x), torch.ones_like(x)
    # A ridge keeps the coefficients, and so the rounding of the words, small.
    ridge = 1e-6 * torch.eye(2 * count + 1, dtype=torch.float64)
    for _ in range(60):
        root = weights.sqrt()
        system, wanted = (
            torch.cat([basis * root[:, None], ridge]),
            torch.cat([values * root, ridge.new_zeros(len(ridge))]),
        )
        fitted = torch.linalg.lstsq(system, wanted).solution
        weights *= (basis @ fitted - values).abs() + 1e-9
        weights /= weights.mean()
    kept = torch.tensor([shape.constant, *shape.cosines, *shape.sines], dtype=torch.float64)
    assert torch.allclose(kept, fitted, rtol=1e-9, atol=1e-9)


def test_activation_is_unbiased_far_from_the_window():
    x = torch.full((4000,), 20.123, dtype=torch.float64)
    gate = Activation("gelu", (8000,), 5, 12, 14, 38)
    share = Input.real(torch.cat([x, -x]), 38, 14, 5)
    found = run(lambda party: gate.run(party, share(party))).values
    assert abs(float(found[:4000].mean() - rounded(x, 14)[0])) < 2e-5
    assert abs(float(found[4000:].mean())) < 2e-5


@pytest.mark.parametrize(("range_bits", "scale", "width"), [(9, 12, 57), (5, 12, 64), (6, 8, 40), (12, 10, 35)])
def test_exponential_keeps_its_error(range_bits, scale, width):
    top, unit = 2.0**range_bits - 2, 2.0**-scale
    y = torch.cat([
        around([4, 8, 10, 12, 14, 15, 16, 18, 20], unit),
        torch.tensor([0, unit, 2 * unit, top - unit], dtype=torch.float64),
        torch.rand(6000, dtype=torch.float64) * 14,
        torch.rand(2000, dtype=torch.float64) * (top - unit),
    ]).clamp(0, top - unit).repeat(3)  # fmt: skip
    y = rounded(y, scale)
    gate = Exponential(tuple(y.shape), range_bits, scale, width)
    share = Input.real(y, range_bits + scale, scale, range_bits)
    done = run(lambda party: gate.run(party, share(party)))
    found, exact = done.values, torch.exp(-y)
    assert {(part.width, part.scale, part.bound) for part in done.results} == {(width, EXP_SCALE, 0)}
    assert float((found - exact).abs().max()) < 2.0**-13
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1 + 2.0**-13
    assert float(found[y >= 12].abs().max()) == 0


def test_exponentials_add_up_without_bias():
    """Over many masks the rounding of words and factors averages out, even if it is large beside the value."""
    y = rounded(torch.tensor([0.0, 1.7, 3.999, 4.0, 6.3, 9.1], dtype=torch.float64), 12)[:, None].expand(6, 20000)
    gate = Exponential((6, 20000), 6, 12, 50)
    share = Input.real(y, 18, 12, 6)
    found = run(lambda party: gate.run(party, share(party))).values
    assert float((found.mean(1) - torch.exp(-y[:, 0])).abs().max()) < 3e-6


def row_inputs(scale, low, high):
    """Values from the whole range: powers of two and bin ends with their neighbours, and at random in log scale."""
    unit, top = 2.0**-scale, 0.93 * 2.0**high
    powers = [2.0**e for e in range(low, high)]
    marks = [f * power for power in powers for f in (1, 15 / 16, 127 / 128, 1 + 1 / 64)]
    spread = 2 ** (torch.rand(600, dtype=torch.float64) * (high - low) + low)
    x = torch.cat([around(marks, unit), around([top], unit), spread]).clamp(2.0**low, top)
    return torch.floor(x * 2**scale).clamp(min=2.0 ** (low + scale)) / 2**scale


@pytest.mark.parametrize(
    ("function", "scale", "low", "high", "result_scale"),
    [
        ("inverse_sqrt", 15, -4, 24, 16),
        ("inverse_sqrt", 23, -14, 14, 14),
        ("inverse_sqrt", 20, -14, 21, 17),  # the lowest window compares 32 bits, with three look-ups
        ("inverse_sqrt", 15, -10, 6, 16),
        ("inverse_sqrt", 12, -7, 6, 12),
        ("inverse_sqrt", 12, -7, 5, 12),
        ("inverse_sqrt", 12, -7, 4, 12),
        ("inverse_sqrt", 6, -1, 2, 37),  # one window; a table in a ring of 64 bits
        ("reciprocal", 14, -6, 9, 16),
        ("reciprocal", 14, -9, 3, 20),
        ("reciprocal", 14, 0, 7, 16),
        ("reciprocal", 5, 0, 3, 12),
        ("reciprocal", 14, -6, 10, 32),  # a table in a ring of 64 bits
    ],
)
def test_row_functions_keep_their_error(function, scale, low, high, result_scale):
    x = row_inputs(scale, low, high)
    gate = RowFunction(function, tuple(x.shape), scale, low, high, result_scale)
    share = Input.real(x, gate.bits, scale, high)
    done = run(lambda party: gate.run(party, share(party)))
    exact = EXACT[function](x)
    # Every window adds the rounding of a truncated table.
    error = ((done.values - exact).abs() - (2 + len(gate._ends)) * 2.0**-result_scale).clamp(min=0) / exact
    assert float(error.max()) < ERROR[function], x[error.argmax()]
    assert {(part.width, part.scale, part.bound) for part in done.results} == {(gate.width, result_scale, gate.bound)}
    assert gate.width == result_scale + gate.bound + 2
    assert float(exact.max()) <= 2.0**gate.bound


def test_values_on_both_sides_of_a_windows_end_are_read_from_a_table_that_holds_them():
    """Only 1 mask in 100 chooses the other valid window here, so each value is computed very often."""
    scale, low, high = 14, 0, 7
    x = torch.tensor([16 * (1 + 1 / part) for part in (-200, -400, -4000, 4000, 400, 200)], dtype=torch.float64)
    x = rounded(x, scale)[:, None].expand(6, 1000)
    gate = RowFunction("reciprocal", (6, 1000), scale, low, high, 16)
    share = Input.real(x, gate.bits, scale, high)
    found = run(lambda party: gate.run(party, share(party))).values
    assert float(((found - 1 / x).abs() - 4 * 2.0**-16).max() * 16) < ERROR["reciprocal"]


def test_a_reciprocal_keeps_its_error_under_rare_masks():
    """Above a window's end the lower table is read under few masks, and its lowest bins are the least exact."""
    x = rounded(torch.tensor([8.45, 8.4938, 8.52], dtype=torch.float64), 14)[:, None].expand(3, 3000)
    gate = RowFunction("reciprocal", (3, 3000), 14, -6, 10, 32)
    share = Input.real(x, gate.bits, 14, 10)
    found = run(lambda party: gate.run(party, share(party))).values
    assert float(((found - 1 / x).abs() * x).max()) < ERROR["reciprocal"]


def test_row_functions_over_leading_dimensions():
    x = row_inputs(14, -6, 9)[:60].view(3, 4, 5)
    gate = RowFunction("reciprocal", (3, 4, 5), 14, -6, 9, 16)
    share = Input.real(x, gate.bits, 14, 9)
    found = run(lambda party: gate.run(party, share(party))).values
    assert float(((found - 1 / x).abs() * x).max()) < 1e-3


@pytest.mark.parametrize(("scale", "low"), [(14, -10), (4, 0), (0, 4)])
def test_a_range_below_the_scale_is_refused(scale, low):
    with pytest.raises(
        SecureRouterValueError, match=f"`low` must be at least {5 - scale} at scale {scale}, got {low}"
    ):
        RowFunction("reciprocal", (3,), scale, low, 8, 12)
