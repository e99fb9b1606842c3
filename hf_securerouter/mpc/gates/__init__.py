# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The gates of the masked protocol, one secure function a file.

Foundations: `gate` (what a gate is), `party` (runs gates), `secret` (a share), `weight_share` (fixed weights), `lift`
and `bits` (parts of other gates). Products: `linear`, `selected_linear`, `matmul`, `expert_linear`, `windowed`,
`relative_scores`, `row_scale`, `product`, `square`. Functions: `relu` (the example to follow), `activation` (GeLU,
SiLU, tanh), `exponential`, `row_function` (1/x, 1/sqrt(x)). Comparison: `compare`, `argmax`, `largest`, `maximum`,
`ranks`, `conjunction`. Choice and order: `select`, `shuffle`. Rings: `bit_to_ring`, `widen`. Values beyond their
bounds: `guard`, `lifted_range`, `in_range`.
"""
