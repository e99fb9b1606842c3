# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The errors and the warning of hf_securerouter."""


class SecureRouterError(Exception):
    """Base class of every error that hf_securerouter raises itself."""


class SecureRouterValueError(SecureRouterError, ValueError):
    """An argument, a field of a config or a checkpoint is wrong; the message says what to do instead."""


class SecureRouterWarning(UserWarning):
    """Something works, but perhaps not as the caller expects."""


class UnknownArgumentError(SecureRouterValueError, TypeError):
    """A callable or a config does not know an argument; the message names the nearest one that it knows. It is also a
    `TypeError`, which Python raises for this."""
