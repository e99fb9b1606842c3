# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a precision are found by its name, and by no other."""

import pytest

from hf_securerouter import SecureRouterValueError
from hf_securerouter.number_format import number_format


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("int8",), "`precision` should be one of full, reduced, got 'int8'"),
        (("reduced", "softmax"), "`softmax` should be one of exact, 2quad, 2relu, got 'softmax'"),
        (("full", "softmax"), "`softmax` should be one of exact"),
    ],
)
def test_another_name_is_refused(given, message):
    with pytest.raises(SecureRouterValueError, match=message):
        number_format(*given)


def test_the_old_name_is_read():
    assert number_format("w8a8") == number_format("reduced") != number_format("full")
