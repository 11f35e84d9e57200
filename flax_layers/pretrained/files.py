# SPDX-License-Identifier: Apache-2.0
"""Files of arrays by name: safetensors, and PyTorch's own format where torch is installed."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from flax_layers.pretrained.rules import Array, Arrays

Source = str | os.PathLike[str] | Mapping[str, Any]
TORCH = (".pth", ".pt", ".bin", ".ckpt")


def read(source: Source, nested: Iterable[Sequence[str]] = ()) -> dict[str, Array]:
    """The arrays of a file, or of a dictionary as such a file holds it.

    nested: the keys that may lead to the arrays inside of the dictionary, the best ones first.
    """
    if isinstance(source, Mapping):
        return {name: _numpy(x) for name, x in _inside(source, nested).items()}
    path = pathlib.Path(source)
    if path.suffix not in (".safetensors", *TORCH):
        raise ValueError(f"{path} must end with .safetensors or with one of {', '.join(TORCH)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        loaded: dict[str, Array] = _safetensors(path).load_file(path)
        return loaded
    # Only arrays are read, so that no file can run code.
    return read(_torch(path).load(path, map_location="cpu", weights_only=True), nested)


def write(path: str | os.PathLike[str], arrays: Arrays) -> None:
    """Writes arrays to a file of the format that its name says."""
    path = pathlib.Path(path)
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    if path.suffix == ".safetensors":
        _safetensors(path).save_file(contiguous, path, metadata={"format": "pt"})
    elif path.suffix in TORCH:
        torch = _torch(path)
        torch.save({name: torch.from_numpy(x) for name, x in contiguous.items()}, path)
    else:
        raise ValueError(f"{path} must end with .safetensors or with one of {', '.join(TORCH)}")


def _inside(source: Mapping[str, Any], nested: Iterable[Sequence[str]]) -> Mapping[str, Any]:
    for keys in nested:
        found: Any = source
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return source


def _numpy(x: Any) -> Array:
    """Of a tensor or an array; NumPy takes no bfloat16 from PyTorch."""
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        x = x.float()
    return np.asarray(x)


def _safetensors(path: pathlib.Path) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"{path.name} needs safetensors: pip install safetensors") from error
    return safetensors.numpy


def _torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs PyTorch: pip install torch, or write the arrays as .safetensors where it is"
        ) from error
    module: ModuleType = torch
    return module
