# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Everything that runs on secret shares.

Two parties hold additive shares of the weights and of the embedded inputs; a dealer hands them correlated randomness
made without any input; the client makes and reconstructs shares. Nothing in this package imports the trainer side,
and importing it loads neither `crypten` nor a role: those are loaded when a model is converted.

The masked engine, from the ground up: `randomness` and `ring` (uniform words; the one door through which words
leave), `shares` (a secret and its shrinking ring), `gate` (what a gate is; gates side by side), `gates/` (one
concept a file), `plan` (the gates that a program asks for, and its exact cost), `dealer` and `tuples` (what they
consume, once), `party` (which runs them), `transport` (the link), `protocols/masked_encoder` (a whole encoder out of
gates).

To add a gate, follow `gates/relu.py`: a frozen dataclass whose fields are public; `deal` draws masks and gives
words, `run` reads them in the same order, yields its openings and returns shares. Its docstring says who sees what
and why that is uniform, and what it costs. Tests run it with `tests/mpc/harness.py`, compare it with exact
arithmetic, and enumerate the parties' views in a tiny ring as `tests/mpc/test_views.py` does.
"""
