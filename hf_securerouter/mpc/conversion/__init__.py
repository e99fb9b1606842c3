# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a Hugging Face model to shared weights and a public manifest.

`validation` lists everything that keeps a model from being converted. `description` finds its encoders and makes the
manifest, `weights` collects the tensors to share. `calibration` measures every layer with `clear_encoder`, on the
owner's texts or on `samples`, and sets the bounds by the `ranges` that it finds. `client` turns texts into embeddings
and logits into labels. `converted` holds the result, and `clear_model` computes with it in clear text.
"""
