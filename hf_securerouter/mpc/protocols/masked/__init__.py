# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked engine: masked openings in shrinking rings, with a dealer that never sees an opening.

`protocol` is the interface to the rest of the package. `sharing` shares inputs, and weights that `folding` has folded;
`layout` gives the public shapes and sizes. `roles` are the parties and the dealer: `schedule` orders the `programs` of
a query, each by its `program_name`; `evaluator` runs one. `encoder` is made of `steps`, these of gates in the rings of
`ring_widths`; `attention` is the part of it that compares tokens, by `key_places`, `mixture` a feed-forward layer of
many experts, `pooling` the mean of its tokens' rows, and `heads` what reads it. `norm_first_folding` folds the weights
of encoders with the norm first, `mixture_folding` those of a mixture. `selected_encoder` has the weights of an expert
that is selected under encryption. `memory` plans the largest batch, by the `row_bytes` of a text
where these are enough, `dispatch` how a mixture is computed.
"""
