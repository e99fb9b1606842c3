# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tests of transformers that do not hold for a pool, each with its reason."""

import re
from typing import NamedTuple


class Exempt(NamedTuple):
    """Why a test may fail, and the pattern of the error it fails with; on one kind of pool only if `kind` is set."""

    reason: str
    error: str
    kind: str = ""


_NO_STATES = "A pool gives no hidden states and no attention: each row has its own expert, of its own depth and width."
_WHOLE = "A checkpoint that lacks tensors is refused, because its answers would come from random weights."

EXCEPTIONS = {
    "test_attention_outputs": Exempt(_NO_STATES, "attentions"),
    "test_hidden_states_output": Exempt(_NO_STATES, "hidden_states"),
    "test_retain_grad_hidden_states_attentions": Exempt(_NO_STATES, "hidden_states|attentions"),
    "test_can_capture_specific_layers_hidden_states": Exempt(_NO_STATES, "`output_hidden_states` cannot be used"),
    "test_capture_outputs_decorator": Exempt(_NO_STATES, "`output_(hidden_states|attentions)` cannot be used"),
    "test_model_outputs_equivalence": Exempt(_NO_STATES, "`output_(hidden_states|attentions)` cannot be used"),
    "test_reverse_loading_mapping": Exempt(
        "The test sets fields of mixtures of experts, and a pool's config refuses fields that it does not know.",
        "does not know `first_k_dense_replace`",
    ),
    "test_can_init_all_missing_weights": Exempt(_WHOLE, "lacks tensors"),
    "test_model_weights_reload_no_missing_tied_weights": Exempt(_WHOLE, "lacks tensors"),
    "test_load_with_mismatched_shapes": Exempt(
        "The test ends with `AutoModel`, which gives hidden states; a pool is a classifier only.",
        "for this kind of AutoModel",
    ),
    "test_can_set_attention_dynamically": Exempt(
        "An expert whose `expert_mpc` names a softmax keeps that attention, whatever the pool is set to.",
        "False is not true",
        kind="NarrowedFunctions",
    ),
}


def is_excepted(kind: str, test: str, failure: str) -> bool:
    """Whether a failure is that of an exception; only the lines of `failure` that pytest marks with E are read."""
    found = EXCEPTIONS.get(test)
    if found is None or found.kind not in ("", kind):
        return False
    return re.search(rf"^E .*(?:{found.error})", failure, flags=re.MULTILINE) is not None
