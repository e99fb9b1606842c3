# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
An expert that reads another tokenizer's tokens.

A query is tokenized once for the whole pool, by the largest expert's tokenizer. A smaller checkpoint of another
vocabulary gets a table of embeddings in the order of that one: a token that it knows by the same name keeps its
embedding, a special token gets that of its role, and any other the mean of its pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_securerouter.errors import SecureRouterValueError, warn
from hf_securerouter.families import counts_positions_from_padding
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.loading import Loading
from hf_securerouter.pool import has_tokenizer
from hf_securerouter.recipes.artifacts import announce


# Names of one role: the first that a tokenizer has counts.
ROLES = (("cls_token", "bos_token"), ("sep_token", "eos_token"), ("pad_token",), ("unk_token",), ("mask_token",))


@refuses_unknown
def read_tokens_of(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase, cache_dir: str | None = None
) -> None:
    """
    Lets a checkpoint read a tokenizer's tokens, in the place. A checkpoint that came without a tokenizer is left as it
    is, with a warning.

    Args:
        model (`PreTrainedModel`): The checkpoint, loaded.
        name (`str`): A folder, or a name on the Hub, that its own tokenizer comes from.
        tokenizer (`PreTrainedTokenizerBase`): Of the pool.
        cache_dir (`str`, *optional*): Where downloads are kept.

    Raises:
        `SecureRouterValueError`: As for [`translate_embeddings`].
    """
    loading = Loading({"cache_dir": cache_dir})
    if not has_tokenizer(name, loading):
        warn(f"{name!r} came without a tokenizer: make sure that it was trained with that of the largest expert.")
        return
    own = AutoTokenizer.from_pretrained(name, **loading.config)
    if own.get_vocab() != tokenizer.get_vocab():
        known = translate_embeddings(model, own, tokenizer)
        announce(f"{name} has another vocabulary: it knows {known} of {len(tokenizer.get_vocab())} tokens by name.")


@refuses_unknown
@torch.no_grad()
def translate_embeddings(
    model: PreTrainedModel, own: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> int:
    """
    Puts a model's embeddings into the order of another tokenizer's ids, in the place.

    Args:
        model (`PreTrainedModel`): Its embeddings (V, E) become (V', E), one for each token of `tokenizer`.
        own (`PreTrainedTokenizerBase`): The model's tokenizer.
        tokenizer (`PreTrainedTokenizerBase`): The one whose ids the model shall read.

    Returns:
        `int`: Tokens that the model knows by their name or role.

    Raises:
        `SecureRouterValueError`: The model counts positions from its padding token, and the tokenizers differ in it.
    """
    if counts_positions_from_padding(model.config) and own.pad_token_id != tokenizer.pad_token_id:
        raise SecureRouterValueError(
            f"A {model.config.model_type} model counts positions from its padding token, {own.pad_token_id}, and that "
            f"of the largest expert's tokenizer is {tokenizer.pad_token_id}: choose one with the same tokenizer."
        )
    vocabulary, roles = own.get_vocab(), _same_roles(own, tokenizer)
    before: Any = model.get_input_embeddings()
    table = before.weight.detach().clone()
    size = max(tokenizer.get_vocab().values()) + 1
    unknown = table.mean(dim=0) if own.unk_token_id is None else table[own.unk_token_id]
    translated, known = unknown.repeat(size, 1), 0
    for token, index in tokenizer.get_vocab().items():
        same = roles.get(token, token)
        if same in vocabulary:
            translated[index], known = table[vocabulary[same]], known + 1
            continue
        text = tokenizer.convert_tokens_to_string([token]).removeprefix("##")
        pieces = own.encode(text, add_special_tokens=False)
        if pieces:
            translated[index] = table[pieces].mean(dim=0)
    model.resize_token_embeddings(size, mean_resizing=False)
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight.copy_(translated)
    embeddings.padding_idx = model.config.pad_token_id = tokenizer.pad_token_id
    return known


def _same_roles(own: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """For a tokenizer's special tokens, those of the same role."""
    found = {}
    for role in ROLES:
        other, same = (
            next(filter(None, (getattr(one, name, None) for name in role)), None) for one in (tokenizer, own)
        )
        if other and same:
            found[other] = same
    return found
