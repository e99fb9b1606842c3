# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role that takes the stand-in of `fake_card.py` for a CUDA device: fake_card_role.py ROLE FD."""

import os
import sys
import threading
from functools import wraps

from fake_card import faked_cuda, on_card
from torch.utils._python_dispatch import _disable_current_modes

from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.protocols.masked.evaluator import SecureProgram
from hf_securerouter.mpc.sessions import role_process as roles


def inside(context, function):
    @wraps(function)
    def wrapped(*args, **options):
        with context():
            return function(*args, **options)

    return wrapped


if __name__ == "__main__":
    threading.Thread.run = inside(on_card, threading.Thread.run)
    # Plans are traced on meta tensors, which are not on the card.
    masked_roles.secure_program = inside(_disable_current_modes, masked_roles.secure_program)
    SecureProgram.plan = inside(_disable_current_modes, SecureProgram.plan)
    with faked_cuda(), on_card():
        status = roles.main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(status)
