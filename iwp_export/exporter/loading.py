"""Which stored tensor goes into which parameter of a model, as transformers' `from_pretrained` decides it."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from iwp_export.errors import CheckpointError, in_one_line
from iwp_export.exporter.config_schema import shortened
from iwp_export.exporter.recognise import name_leftovers
from iwp_export.exporter.weights import FLOATS, StoredTensor


@contextlib.contextmanager
def empty_model(config: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    """transformers' model of its configuration on fake tensors, within a context of them.

    Raises:
        CheckpointError: transformers makes none.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)  # a model writes its element type and attention into it
    with FakeTensorMode():
        try:
            with no_init_weights():
                model = AutoModelForImageTextToText.from_config(
                    config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
                ).eval()
            model.tie_weights()
        except Exception as error:  # whatever a value that no row foresaw leads to
            text = shortened(in_one_line(error))
            raise CheckpointError(f"transformers makes no model of {folder / 'config.json'}: {text}") from error
        yield model


def loaded_tensors(model: Any, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensor that `from_pretrained` would load into each parameter and persistent buffer of a model, by its name.

    Parameters that the configuration ties share a tensor, unless the checkpoint holds one for each and they differ:
    then transformers does not tie them, and here they become two parameters of `model`.

    Raises:
        CheckpointError: two tensors are for one parameter, one is more than renamed on its way, or one without a place
            in the model changes the answers.
    """
    return _loaded(model, stored)[0]


def _loaded(model: Any, stored: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], str]:
    """See `loaded_tensors`; and a line about the tensors that have no place in the model."""
    loaded, left_out = _renamed(model, stored)
    ties: Mapping[str, str] = model.all_tied_weights_keys
    for target, source in ties.items():
        if target in loaded and source in loaded:
            if not _equal(loaded[target], loaded[source]):
                _untie(model, target)
            continue
        alike = (source, target, *(other for other, its_source in ties.items() if its_source == source))
        if held := next((loaded[name] for name in alike if name in loaded), None):
            loaded[target] = loaded[source] = held
    return loaded, left_out


def check_weights(config: Any, folder: Path, stored: Mapping[str, StoredTensor]) -> str:
    """Check by their headers that stored tensors are a model's; returns a line about those left out, if any.

    Raises:
        CheckpointError: as `loaded_tensors` and `check_tensor`.
    """
    with empty_model(config, folder) as model:
        loaded, left_out = _loaded(model, stored)
        for name, parameter in model.named_parameters():
            check_tensor(name, parameter.shape, loaded.get(name))
    return left_out


def check_tensor(name: str, shape: Sequence[int], stored: StoredTensor | None) -> None:
    """Refuse a tensor that cannot be a parameter's value; None stands for none.

    Raises:
        CheckpointError: it is missing, has another shape, or holds no floating numbers.
    """
    if stored is None:
        raise CheckpointError(f"the checkpoint lacks {name}; its config.json asks for it")
    if stored.shape != tuple(shape):
        raise CheckpointError(
            f"{name} has shape {list(stored.shape)} in the checkpoint, but its config.json asks for {list(shape)}"
        )
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{name} is stored as {stored.dtype}, but weights must be one of {', '.join(FLOATS)}; "
            "export the checkpoint that this one was quantised from"
        )


def _renamed(model: Any, stored: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], str]:
    """The tensors under the names of the model's parameters; and a line about those that have no place in it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if not isinstance(each, WeightRenaming)]
    places = dict.fromkeys(model.state_dict(), True)
    loaded: dict[str, StoredTensor] = {}
    left = []
    for name in sorted(stored, key=dot_natural_key):  # some renamings depend on those before
        place, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, places)
        if place not in places and name in places:
            place, converter = rename_source_key(name, [], [], model.base_model_prefix, places)
        if converter is not None:
            raise CheckpointError(
                f"{stored[name].file} holds {name} in an older layout, from which transformers would compute {place}; "
                "load and save_pretrained it with transformers first"
            )
        if place in loaded and not _equal(loaded[place], stored[name]):
            raise CheckpointError(
                f"{stored[name].file} holds {name}, which is {place} as {loaded[place].name} of "
                f"{loaded[place].file.name} is, with other values; remove the one that is not meant"
            )
        if place in places:
            loaded.setdefault(place, stored[name])
        else:
            left.append(name)
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    left = [name for name in left if not any(re.search(pattern, name) for pattern in ignored)]
    return loaded, name_leftovers(left, list(stored), str(stored[left[0]].file)) if left else ""


def _untie(model: Any, name: str) -> None:
    """Give a module a parameter of its own in place of the one that it shares."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    shared = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors have the same type, shape and values; read block by block."""
    if one == other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.dtype not in FLOATS:
        return False
    return all(
        np.array_equal(mine, theirs) for (_, mine), (_, theirs) in zip(one.blocks(), other.blocks(), strict=True)
    )
