# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Encoders whose values leave the default bounds are answered rightly or refused, in every family, never wrongly."""

import warnings

import pytest
import torch

from hf_securerouter.errors import SecureRouterWarning
from hf_securerouter.families import layers_of
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.number_format import Bounds
from tests.mpc.conversion.test_calibration import LENGTH, batch
from tests.support.conversation import Conversation
from tests.tiny import FAMILIES, noisy_classifier


SESSIONS = 3  # fresh masks: a value beyond its bound is wrong by whole units, with most masks


def converted(model):
    """The model on shares, or None where it is refused by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecureRouterWarning)
        try:
            return to_mpc(model, max_length=LENGTH)
        except ConversionError as error:
            assert all(problem.path.startswith("experts.0") for problem in error.problems)
            return None


@torch.no_grad()
def error_of(secure, model):
    """The largest error of a logit over some sessions."""
    inputs, talk = batch(), Conversation(secure)
    expected = model(**inputs).logits
    return max(float((talk(*inputs.values()).logits - expected).abs().max()) for _ in range(SESSIONS))


def reached(secure, kind):
    return max(one.reached for one in secure.ranges if one.kind == kind)


@pytest.mark.parametrize("family", FAMILIES)
def test_outliers_are_answered_rightly(family):
    """One channel of the residual and some neurons are far larger than the others, as in large encoders."""
    model = noisy_classifier(family, width=16, heads=2)
    layer = layers_of(model)[-1]
    with torch.no_grad():
        layer.intermediate.weight[:4] *= 60
        layer.output.weight[3] *= 100
    secure = converted(model)
    assert secure is not None
    assert reached(secure, "residual") > 2**Bounds.residual and reached(secure, "inner") > 2**Bounds.inner
    assert error_of(secure, model) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_queries_are_answered_rightly_or_refused(family):
    for factor, answered in ((7, True), (64, False)):
        model = noisy_classifier(family, width=16, heads=2)
        with torch.no_grad():
            for layer in layers_of(model):
                layer.query.weight.mul_(factor)
        secure = converted(model)
        assert (secure is not None) == answered
        assert not answered or error_of(secure, model) < 0.02
