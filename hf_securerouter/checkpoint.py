# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint of a pool: loading it whole, saving it at once, pushing it to the Hub."""

import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .admission import probe_pool
from .configuration_securerouter import SecureRouterConfig
from .errors import FileError, SecureRouterValueError
from .known_arguments import refuse_unknown
from .loading import only_download_bars
from .members import PoolOfMembers
from .pool import not_finite


# What `save_pretrained` takes beside its own parameters, and what it passes to `push_to_hub`.
_SAVING = (
    *(
        name
        for name in inspect.signature(PreTrainedModel.save_pretrained).parameters
        if name not in ("self", "kwargs")
    ),
    "safe_serialization",
    "save_function",
)
_UPLOADING = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr")
_ADAPTER = "adapter_config.json"  # of PEFT
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class SecureRouterPreTrainedModel(PoolOfMembers):
    """The base class of the pool, with what transformers needs to load, save, place and train a model."""

    config: SecureRouterConfig
    base_model_prefix = "secure_router"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # The auxiliary losses are means over the batch, so the Trainer has to divide by the accumulation steps.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """Loads a saved pool, as [`~PreTrainedModel.from_pretrained`] does, and refuses an incomplete checkpoint.

        Raises:
            `FileError`: A safetensors file is corrupt.
            `SecureRouterValueError`: Tensors are missing, unexpected or not finite.
        """
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            name = str(pretrained_model_name_or_path)
            what = f"A safetensors file of {name!r} is corrupt ({error})"
            raise FileError(what, f"{name}/model.safetensors", "download or copy it again") from error
        model, info = loaded
        for problem, names in (
            ("lacks", info["missing_keys"]),
            ("has foreign", info["unexpected_keys"]),
            ("has infinite or NaN values in", not_finite(model)),
        ):
            if names:
                raise SecureRouterValueError(
                    f"The checkpoint {str(pretrained_model_name_or_path)!r} {problem} tensors, {_listed(names)}: save "
                    "it again from the model, or load the revision that belongs to its config.json."
                )
        probe_pool(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves config, safetensors and model card, as [`~PreTrainedModel.save_pretrained`] does. Files are written to
        a temporary folder first and then renamed, so that a failed write leaves an earlier checkpoint as it was.

        Raises:
            `SecureRouterValueError`: `save_directory` is a file or holds an adapter, or an argument is unknown.
        """
        if os.path.isfile(save_directory):
            raise SecureRouterValueError(f"`save_directory` should be a folder, got the file {str(save_directory)!r}.")
        refuse_unknown("`save_pretrained`", kwargs, (*_SAVING, *_UPLOADING))
        if kwargs.pop("safe_serialization", True) is False:
            raise SecureRouterValueError("`safe_serialization` is False: weights are saved as safetensors only.")
        kwargs.pop("save_function", None)  # of older training loops, which wrote pickles with it
        hub = {name: kwargs.pop(name) for name in _UPLOADING if name in kwargs}
        if "max_shard_size" in kwargs:
            hub["max_shard_size"] = kwargs["max_shard_size"]
        if kwargs.get("distributed_checkpoint"):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        elif is_main_process:
            folder = Path(save_directory)
            if not getattr(self, "_hf_peft_config_loaded", False) and (folder / _ADAPTER).exists():
                raise SecureRouterValueError(
                    f"`save_directory` {str(save_directory)!r} holds an adapter ({_ADAPTER}), which would be put onto "
                    "this pool when it is loaded: name another folder, or remove the adapter."
                )
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging, only_download_bars():
                super().save_pretrained(staging, True, state_dict, **kwargs)
                self._move_checkpoint(Path(staging), folder)
            self._write_card(folder)
        if push_to_hub and is_main_process:
            name = hub.pop("repo_id", None) or Path(save_directory).absolute().name
            self._push(name, Path(save_directory) / "README.md", **hub)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> Any:
        """Uploads config, safetensors and model card, as [`~PreTrainedModel.push_to_hub`] does, and no other file of a
        training folder, such as the pickle `training_args.bin`. A README.md that a person wrote on that branch stays.
        """
        return self._push(
            repo_id,
            None,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=tags,
        )

    def _push(
        self,
        repo_id: str,
        own_card: Path | None,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
        **commit: Any,
    ) -> Any:
        """As `push_to_hub`; a branch without a card gets `own_card`, if there is one."""
        repo_id = HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            card_path = Path(folder) / "README.md"
            if own_card is not None and own_card.exists():
                shutil.copyfile(own_card, card_path)
            for branch in dict.fromkeys((revision, None)):  # a new branch begins with the files of the main one
                try:
                    shutil.copyfile(
                        HfApi().hf_hub_download(repo_id, "README.md", revision=branch, token=token), card_path
                    )
                except RevisionNotFoundError:
                    continue
                except EntryNotFoundError:
                    pass
                break
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if tags and card_path.exists():
                card = ModelCard.load(card_path)
                card.data.tags = sorted({*(card.data.tags or []), *tags})
                card.save(card_path)
            return self._upload_modified_files(
                folder,
                repo_id,
                files_timestamps={},
                token=token,
                revision=revision,
                **commit,
            )

    def _write_card(self, folder: Path) -> None:
        try:
            from hf_securerouter.model_card import write_model_card
        except ImportError:  # this file came from the Hub alone
            return
        write_model_card(cast(Any, self), folder)

    @staticmethod
    def _move_checkpoint(staging: Path, folder: Path) -> None:
        """Moves the files of `staging` to `folder`, and deletes the shards of an earlier checkpoint there. An adapter
        has no such files, and leaves those of its pool alone.
        """
        new = {path.name for path in staging.iterdir()}
        for name in sorted(new):
            os.replace(staging / name, folder / name)
        for path in folder.iterdir():
            if path.name not in new and _WEIGHTS.fullmatch(path.name) and any(map(_WEIGHTS.fullmatch, new)):
                path.unlink()


def _listed(names: Iterable[str], most: int = 8) -> str:
    ordered = sorted(names)
    rest = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {rest} more" if rest > 0 else "")
