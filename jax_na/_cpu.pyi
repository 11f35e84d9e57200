# SPDX-License-Identifier: Apache-2.0
import numpy as np
from numpy.typing import NDArray

def handlers() -> dict[str, object]: ...
def ffi_api_version() -> tuple[int, int]: ...
def isa() -> str: ...
def isa_levels() -> list[str]: ...
def width() -> int: ...
def rows_fit(
    target: str,
    tile: list[int],
    axes: list[tuple[int, int, int, int, bool]],
    head_dim: int,
    value_dim: int,
) -> bool: ...
def windows(
    length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> NDArray[np.int32]: ...
def inverse_windows(
    length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> NDArray[np.int32]: ...
def tile_range(
    length: int,
    kernel_size: int,
    stride: int,
    dilation: int,
    is_causal: bool,
    group: int,
    first: int,
    last: int,
) -> tuple[int, int, int, int]: ...
def scratch_bytes(
    target: str,
    tile: list[int],
    axes: list[tuple[int, int, int, int, bool]],
    head_dim: int,
    value_dim: int,
) -> int: ...

SMALLEST_SHARED_WORK: float
