# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""No gate of the package is left out of the tests of views."""

import importlib
import inspect
import pkgutil

from hf_securerouter.mpc import gates
from hf_securerouter.mpc.gates.activation import _SHAPES, Activation
from hf_securerouter.mpc.gates.argmax import Reveal
from hf_securerouter.mpc.gates.gate import Gate
from hf_securerouter.mpc.gates.ranks import Order
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.gates.shuffle import Shuffle
from tests.mpc.gates import test_experts, test_selection, test_views


CASES = [*test_views.CASES.values(), *test_experts.CASES.values(), *test_selection.CASES.values()]
ELSEWHERE = {
    Order: "runs go one after another, in test_views_order.py",
    Shuffle: "runs go one after another, in test_views_shuffle.py",
    RowFunction: "needs smaller tables, in a test of its own in test_views.py",
    Reveal: "shows its bits on purpose; what it shows of a choice is a test of its own in test_views.py",
}


def all_gates(base=Gate):
    """Every gate of the package, whatever module it is in."""
    for module in pkgutil.walk_packages(gates.__path__, f"{gates.__name__}."):
        importlib.import_module(module.name)
    found = set()
    for kind in base.__subclasses__():
        found |= all_gates(kind) | {kind}
    return {kind for kind in found if kind.__module__.startswith("hf_securerouter.") and not inspect.isabstract(kind)}


def of_package(gate):
    """A gate's class, or of a variant in tests the class that it varies."""
    return next(kind for kind in type(gate).__mro__ if kind.__module__.startswith("hf_securerouter."))


def test_every_gate_has_a_case_or_a_reason():
    planned = [gate for case in CASES for gate in case.plan(101).gates]
    found = {of_package(gate) for gate in planned}
    assert all_gates() - found == set(ELSEWHERE)
    assert {gate.function for gate in planned if isinstance(gate, Activation)} == set(_SHAPES)
