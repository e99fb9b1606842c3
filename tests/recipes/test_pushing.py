# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A push that fails after a run says why, that nothing is lost, and what to do."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.recipes.routed_pool import RoutedPoolRun


class Unreached(HfHubHTTPError.__bases__[0]):
    """As the HTTP library of huggingface_hub says that there is no network."""


def answered(status):
    error = HfHubHTTPError.__new__(HfHubHTTPError, "no")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "mendable"),
    [
        (Unreached("Name or service not known"), False),
        (OfflineModeIsEnabled("offline"), False),
        (answered(503), False),
        (answered(403), True),
        (LocalTokenNotFoundError("no token"), True),
        (HFValidationError("no name"), True),
    ],
)
def test_a_push_that_fails_is_told_in_one_line(tmp_path, monkeypatch, error, mendable):
    def create_repo(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    run = RoutedPoolRun.__new__(RoutedPoolRun)
    run.folder = tmp_path
    with pytest.raises(SecureRouterError) as caught:
        run.push("you/router", token="hf_secret")
    message = str(caught.value)
    assert isinstance(caught.value, SecureRouterValueError) == mendable
    assert ("hf auth login" if mendable else "is this machine online?") in message
    assert message.startswith("`hub_model_id` 'you/router' ") and f"The run is whole in {str(tmp_path)!r}" in message
    assert "\n" not in message and "hf_secret" not in message
