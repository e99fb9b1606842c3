# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic mod 2^K, on which every other folder of `mpc` builds.

`words` reduces, packs and seals (masks and packs) ring elements, `fixed_point` encodes real numbers as ring elements,
`matmul` multiplies matrices of ring elements, `few_rows` those of a few rows, `randomness` draws every mask, share and
seed. `device` moves tensors between a CPU and a CUDA device; `chacha_cuda` (keystream) and `packing_cuda` (packing)
serve CUDA devices.
"""
