# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Files that a run leaves, made once."""

from __future__ import annotations

import json
import os
import shutil

from accelerate import PartialState
from safetensors.torch import load_file, save_file

from hf_securerouter.files import write_json


def once(path, make):
    """The JSON value in `path`, made and written by the main process if it is not there."""
    state = PartialState()
    if state.is_main_process and not path.exists():
        write_json(make(), path)
    state.wait_for_everyone()
    return json.loads(path.read_text())


def once_tensors(path, make):
    """The tensors in `path`, made by all processes together and written if they are not there."""
    state = PartialState()
    missing = not path.exists()
    state.wait_for_everyone()
    if missing:
        tensors = {name: value.contiguous() for name, value in make().items()}
        if state.is_main_process:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            save_file(tensors, temporary)
            os.replace(temporary, path)
        state.wait_for_everyone()
    return load_file(path)


def save_once(folder, model, tokenizer, train):
    """Trains a model, and saves it as a whole, unless the folder stands there already."""
    state = PartialState()
    missing = not folder.exists()
    state.wait_for_everyone()
    if missing:
        train()
        if state.is_main_process:
            staging = folder.with_name(f".{folder.name}")
            shutil.rmtree(staging, ignore_errors=True)
            tokenizer.save_pretrained(staging)
            model.save_pretrained(staging)
            os.rename(staging, folder)
        state.wait_for_everyone()
