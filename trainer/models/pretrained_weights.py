"""Reads the weights of a Hugging Face checkpoint.

Weights come from one file or from shards, of PyTorch or TensorFlow. Tensor names decide
how they are read, metadata do not, and every weight and every tensor is accounted for.
"""

import collections
import json
import os
import re
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping

import h5py
import numpy as np
import safetensors
import tensorflow as tf
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
)
from transformers.utils import cached_file

from configs.errors import UserError
from trainer.models.config_json import reading

# Of `torch.compile` and of data parallelism.
_WRAPPERS = re.compile(r"^((_orig_mod|module)\.)+")
# The causal mask, which older versions of PyTorch's GPT-2 save.
_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")
_NUM_NAMES = 8  # that an error lists


def assign(
    variables: Mapping[str, tf.Variable],
    checkpoint: str,
    *,
    kind: str,
    tied: tuple[str, str],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    transposed: Container[str] = (),
) -> None:
    """Assigns a checkpoint's weights, one tensor at a time.

    Args:
      variables: all of the model, by PyTorch's names; a bias is [1, n] or [n].
      checkpoint: a Hugging Face folder or name.
      kind: of the model, for messages.
      tied: names of the output's table, if it is stored, and of its equal.
      shapes: PyTorch's, by name, where they are not those of the variables.
      transposed: names of those that PyTorch stores with rows as columns.

    Raises:
      UserError: the files cannot be read; or a weight is missing, unexpected, of
        another shape or type, or not finite.
    """
    missing = dict(variables)
    problems: dict[str, list[str]] = collections.defaultdict(list)
    head = None
    for stored_name, value in _tensors(checkpoint):
        name = _pytorch_name(stored_name, value.shape, variables)
        if _MASK.fullmatch(name):
            continue
        if name == tied[0] and head is None:
            head = value
            continue
        if name in transposed and "/" not in stored_name:
            value = value.T
        variable = missing.pop(name, None)
        if variable is None:
            kind = "Stored twice" if name in variables else "Unexpected"
            problems[kind].append(stored_name)
            continue
        shape = (shapes or {}).get(name, tuple(variable.shape))
        if shape not in (value.shape, (1, *value.shape)):
            what = f"{name} is {list(value.shape)}, not {list(shape)}"
            problems["Of another shape"].append(what)
        elif not tf.as_dtype(value.dtype).is_floating:
            what = f"{name} is {value.dtype}"
            problems["Not of a floating-point type"].append(what)
        elif not np.isfinite(value := _float32(value)).all():
            problems["Not finite"].append(name)
        else:
            variable.assign(value.reshape(variable.shape))
    if missing:
        problems["Missing"] = sorted(missing)
    if head is not None and not problems:
        table = np.asarray(tf.convert_to_tensor(variables[tied[1]]))
        if not np.array_equal(_float32(head), table):
            problems[f"Not equal to {tied[1]}"] = [tied[0]]
    if problems:
        kinds = [f"{kind}: {_listed(names)}." for kind, names in problems.items()]
        raise UserError(
            f"The weights of {checkpoint} must be those of the {kind} in its "
            "config.json, all of them, and finite.\n  " + "\n  ".join(kinds)
        )


def _float32(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is reported as such
        return value.astype(np.float32, copy=False)


def _listed(names: list[str]) -> str:
    num_others = len(names) - _NUM_NAMES
    others = f", and {num_others} more" if num_others > 0 else ""
    return ", ".join(names[:_NUM_NAMES]) + others


def _pytorch_name(name: str, shape: tuple[int, ...], known: Container[str]) -> str:
    """Returns the name that PyTorch's model with its head gives to a stored tensor."""
    if "/" in name:  # TensorFlow's; in .h5 the model's own name stands before it
        name = f"transformer/{name.rpartition('transformer/')[2]}"
        name = convert_tf_weight_name_to_pt_weight_name(name, tf_weight_shape=shape)[0]
    name = _WRAPPERS.sub("", name)
    of_base_model = f"transformer.{name}"
    return of_base_model if of_base_model in known else name


def _tensors(checkpoint: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and values of all tensors, of the first layout that is there."""
    for layout, read in _READERS.items():
        for name in (layout, f"{layout}.index.json"):
            path = _path(checkpoint, name)
            if path is None:
                continue
            shards = _shards(checkpoint, path) if path.endswith(".json") else [path]
            for shard in shards:
                with reading(f"{shard} must be a whole file, as of {layout}."):
                    yield from read(shard)
            return
    raise UserError(
        f"{checkpoint} must hold {' or '.join(_READERS)}, or its .index.json and "
        "shards. It has none of them. Save it with transformers' `save_pretrained`."
    )


def _path(checkpoint: str, name: str) -> str | None:
    """Returns where a file is on this machine; None where the checkpoint lacks it."""
    with reading(f"{name} of {checkpoint} must be readable."):
        return cached_file(
            checkpoint, name, _raise_exceptions_for_missing_entries=False
        )


def _shards(checkpoint: str, index: str) -> list[str]:
    """Returns the files that an index names, on this machine."""
    with (
        reading(f"{index} must map tensors to files, in `weight_map`."),
        open(index, encoding="utf-8") as stream,
    ):
        names = sorted(set(json.load(stream)["weight_map"].values()))
        # An index comes from strangers: it must not point out of its folder.
        outside = [n for n in names if n != os.path.basename(n) or n in ("", "..")]
    if outside:
        raise UserError(
            f"{index} must name files beside it. Received: {_listed(outside)}."
        )
    paths = {name: _path(checkpoint, name) for name in names}
    if absent := [name for name, path in paths.items() if path is None]:
        raise UserError(
            f"{index} names files that are not there: {_listed(absent)}. Get them."
        )
    return [path for path in paths.values() if path]


def _read_safetensors(path: str) -> Iterator[tuple[str, np.ndarray]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  (the file is no mapping)
            yield name, file.get_tensor(name)


def _read_pytorch(path: str) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch, which is not installed here. Install it, or convert"
            " the file where it is:\n"
            "  import torch, safetensors.torch as st\n"
            "  st.save_file({k: v.clone() for k, v in torch.load('pytorch_model.bin', "
            "weights_only=True).items()}, 'model.safetensors')"
        ) from error
    mmap = zipfile.is_zipfile(path)  # before version 1.6, a file was one pickle
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is not a tensor but {type(tensor).__name__}")
        # NumPy has no bfloat16.
        value = tensor.float() if tensor.is_floating_point() else tensor
        yield name, value.detach().numpy()


def _read_h5(path: str) -> Iterator[tuple[str, np.ndarray]]:
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            if isinstance(item := file[name], h5py.Dataset):
                yield name, item[()]


_READERS: dict[str, Callable[[str], Iterator[tuple[str, np.ndarray]]]] = {
    "model.safetensors": _read_safetensors,
    "pytorch_model.bin": _read_pytorch,
    "tf_model.h5": _read_h5,
}
