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


SESSIONS = 3  # fresh masks: beyond a bound a wrong answer depends on them
PARTS = {  # names of a layer's linear modules, as in BERT and as elsewhere
    "query": ("query", "q_lin", "attn.q"),
    "attention_output": ("attention.output.dense", "attention.out_lin", "attention.attn.o", "attention.dense"),
    "intermediate": ("intermediate.dense", "ffn.lin1", "ffn"),
    "output": ("output.dense", "ffn.lin2", "ffn_output"),
}
