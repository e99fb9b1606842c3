# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic mod 2^K: what every other folder of `mpc` computes with.

`words` packs, reduces and seals ring elements, `fixed_point` turns real numbers into them, `matmul` multiplies them,
`randomness` draws every mask, share and seed. `device` moves tensors between a CPU and a CUDA device; `chacha_cuda`
and `packing_cuda` are the kernels that only the latter needs.
"""
