# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The upload of a finished run to the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown


UPLOADED = ["config.json", "*.safetensors.index.json", "model*.safetensors", "tokenizer*", "README.md"]
UPLOADED += ["curve.png", "report.json"]

# What huggingface_hub raises: errors of its HTTP library and of the system, and of a name that it does not take.
_OF_THE_HUB: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
_REFUSED = (400, 401, 403, 404)  # the Hub was reached, and takes neither the name nor the token


@refuses_unknown
def push_run(folder: Path, repo_id: str, token: str | None = None, private: bool | None = None) -> None:
    """
    Upload the checkpoint of a run, its card, the figure and the report; nothing else of the folder.

    Args:
        folder (`Path`): Of the run.
        repo_id (`str`): The repository; made if it does not exist.
        token (`str`, *optional*): Of the Hub.
        private (`bool`, *optional*): Whether a new repository is private.

    Raises:
        `SecureRouterError`: The Hub was not reached; a `SecureRouterValueError` if the name or the token is wrong.
    """
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=UPLOADED)
    except _OF_THE_HUB as error:
        raise _not_pushed(folder, repo_id, error) from error


def _not_pushed(folder: Path, repo_id: str, error: Exception) -> SecureRouterError:
    again = f"The run is whole in {str(folder)!r}, and the same command pushes it without training again."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, (HFValidationError, LocalTokenNotFoundError)) or status in _REFUSED:
        return SecureRouterValueError(
            f"`hub_model_id` {repo_id!r} is no name on the Hub that you may write to ({type(error).__name__}): "
            f"correct it, or sign in with `hf auth login`. {again}"
        )
    return SecureRouterError(
        f"`hub_model_id` {repo_id!r} was not pushed to the Hub ({type(error).__name__}): is this machine online? "
        f"{again}"
    )
