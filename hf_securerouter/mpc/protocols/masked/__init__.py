# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked engine: masked openings in shrinking rings, with a dealer that sees no opening.

`protocol` is its face, `layout` what all roles know of a model, `sharing` how weights and inputs are shared, `roles`
what party and dealer do. `schedule` orders the `programs` of a query, the `evaluator` runs one; an `encoder` is made
of gates in the rings of `ring_widths`, with weights from `folding`; `selected_encoder` is one chosen under encryption.
"""
