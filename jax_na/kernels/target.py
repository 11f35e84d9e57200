# SPDX-License-Identifier: Apache-2.0
"""JAX's machinery: kernels registered with XLA, primitives, lowering, batching (over devices: partition.py).

A primitive here takes operands in one order: those that carry the batch axes, then `offsets`, then what the
batch shares (the positional bias). Its parameters are `op` and, for one, static sizes of its result.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_na import _cpu
from jax_na.kernels import devices
from jax_na.kernels.plan import Plan
from jax_na.mesh import partition
from jax_na.mesh.shards import Roles as _Roles
from jax_na.neighborhood import Op, Shape

instantiate: Callable[[Any], Any] = (
    ad.instantiate_zeros
)  # keeps what shard_map knows about a tangent; jnp.zeros does not
is_linear: Callable[[Any], bool] = ad.is_undefined_primal  # the operands that a transposition asks about


def is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def align(*operands: Array) -> list[Array]:
    """The operands, inside shard_map all varying over the same axes, as JAX's own operations take them."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in operands]
    axes = frozenset().union(*varying)
    return [
        x if v == axes else jax.lax.pcast(x, tuple(axes - v), to="varying")
        for x, v in zip(operands, varying, strict=True)
    ]


# Registration. XLA accepts handlers built for its own FFI version or an older one, and they must be compared
# beforehand: a refused handler makes every later JAX call on its platform fail.


def _runtime_ffi_version() -> tuple[int, int]:
    header = pathlib.Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    found = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    major, minor = (int(match[1]) if match else -1 for match in found)
    return major, minor


def _refusal(built: tuple[int, int], runtime: tuple[int, int]) -> str | None:
    if built[0] == runtime[0] and built[1] <= runtime[1]:
        return None
    (a, b), (c, d) = built, runtime
    return f"the kernels were built for XLA FFI {a}.{b}, the installed jaxlib has {c}.{d}: update jaxlib"


def _register(platform: str, module: Any) -> str | None:
    """Registers all handlers of a module of kernels; the reason if it cannot be done."""
    reason = _refusal(tuple(module.ffi_api_version()), _runtime_ffi_version())
    if reason is None:
        for name, handler in module.handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform=FFI_PLATFORMS[platform])
        TARGETS[platform] = frozenset(module.handlers())
    return reason


def _register_cuda() -> str | None:
    """The same for the CUDA kernels, if this installation has them. It needs no GPU: XLA asks later."""
    if importlib.util.find_spec("jax_na._cuda") is None:
        return NOT_BUILT
    try:
        return _register("cuda", importlib.import_module("jax_na._cuda"))
    except ImportError as error:
        return f"the CUDA kernels do not load: {error}"


NOT_BUILT = (
    "this installation has no CUDA kernels; install jax-na again from source where there is an nvcc, or with "
    "JAX_NA_CUDA_TOOLKIT=pypi in the environment"
)
FFI_PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}  # JAX's name -> the name that registration takes
TARGETS: dict[str, frozenset[str]] = {}  # platform -> names of its registered kernels
REFUSED = {"cpu": _register("cpu", _cpu), "cuda": _register_cuda()}  # platform -> why it has none


def refusal(platform: str) -> str | None:
    """Why no kernel runs on a platform, as far as it can be known when compiling for it."""
    if platform == "cuda" and platform in TARGETS:
        return devices.cuda_refusal(cuda_architectures())
    return REFUSED.get(platform)


def cuda_architectures() -> list[str]:
    """What the CUDA kernels were compiled for, see `devices.runs_on`."""
    return list(importlib.import_module("jax_na._cuda").architectures())


def call(
    name: str,
    results: Sequence[tuple[Shape, Any]],
    operands: Sequence[Array],
    op: Op,
    plan: Plan,
    aliases: dict[int, int] | None = None,
) -> list[Array]:
    """Calls a kernel. `results` are shapes and dtypes.

    `aliases` are the operands that a result may overwrite, operand -> result.

    XLA cannot split it over devices: `primitive` does, around it.
    """
    n = op.neighborhood
    axes = {
        "kernel_size": n.kernel_size,
        "stride": n.stride,
        "dilation": n.dilation,
        "is_causal": n.is_causal,
        "length": op.length,
        "tile": plan.tile,
    }
    scratch = [] if plan.scratch is None else [((plan.scratch,), jnp.uint8)]
    shapes = [jax.ShapeDtypeStruct(*r) for r in (*results, *scratch)]
    kernel = jax.ffi.ffi_call(name, shapes, input_output_aliases=aliases)
    attributes = {key: np.array(values, np.int64) for key, values in axes.items()}
    outputs = kernel(*operands, **attributes, **plan.attributes, scale=np.float64(op.scale))
    return list(outputs[: len(results)])


# Primitives.

Lower = Callable[..., Sequence[Array]]
Roles = Callable[[Op, int], _Roles]


class _Primitive(Primitive):
    """A primitive that is lowered through custom_partitioning, which JAX learns from the marker."""

    def bind(self, *args: Any, **params: Any) -> Any:
        return Primitive.bind(self, *args, **{**params, "partitioned": partition.marker()})


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that does not take the marker."""

    @functools.wraps(function)
    def rule(*args: Any, partitioned: Any, **params: Any) -> Any:
        return function(*args, **params)

    return rule


def primitive(
    name: str, abstract: Callable[..., list[Any]], lower: Lower, roles: Roles, sums: bool = False
) -> Primitive:
    """A primitive whose operands are arrays with batch axes, then shared ones.

    `abstract(*avals, **params)` gives the results' types (see `like`), `lower(platform, *operands, **params)`
    their values in JAX; platform is "cpu", "cuda", or "" for others. `roles(op, number of operands)` says
    what the axes of operands and results are (see shards.py). `sums` says that some results are sums over
    the batch when there are shared operands besides `offsets`.
    """
    p: Primitive = _Primitive(name)
    p.multiple_results = True
    p.def_abstract_eval(_plain(abstract))

    @functools.cache
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., list[Array]]:
        return jax.jit(functools.partial(p.bind, **dict(params)))

    def impl(*args: Array, **params: Any) -> list[Array]:
        del params["partitioned"]
        with jax.disable_jit(False):  # else p.bind would come back here for ever
            return compiled(tuple(sorted(params.items())))(*args)

    p.def_impl(impl)
    for platform in ("", *FFI_PLATFORMS):
        split = _plain(functools.partial(_lower_split, functools.partial(lower, platform), roles))
        mlir.register_lowering(p, mlir.lower_fun(split, multiple_results=True), platform=platform or None)
    batching.primitive_batchers[p] = _plain(functools.partial(_batch, p, roles, sums))
    return p


def _lower_split(lower: Lower, roles: Roles, *operands: Array, **params: Any) -> Sequence[Array]:
    results: Sequence[Array]
    results = partition.automatic(lower, params["op"], roles(params["op"], len(operands)), operands, params)
    return results


def like(aval: Any, shape: Shape | None = None, dtype: Any = None) -> Any:
    """The type of a result: that of the operand `aval`, with another shape or dtype."""
    shape = aval.shape if shape is None else shape
    changes: dict[str, Any] = {"shape": shape, "dtype": jnp.dtype(dtype or aval.dtype)}
    if len(shape) != aval.ndim:
        spec = (*aval.sharding.spec, *(None,) * aval.ndim)[: len(shape)]
        changes["sharding"] = aval.sharding.update(spec=jax.sharding.PartitionSpec(*spec))
    return aval.update(**changes)


def _batch(
    p: Primitive, roles: Roles, sums: bool, args: Sequence[Array], dims: Sequence[int | None], **params: Any
) -> tuple[list[Array], list[int]]:
    """The mapped axis becomes a new leading batch axis; where results mix the batch, map one by one."""
    pairs = list(zip(args, dims, strict=True))
    batched = sum(role.startswith("B") for role in roles(params["op"], len(args))[0])
    size = next(x.shape[d] for x, d in pairs if d is not None)
    mapped = [None if d is None else jnp.moveaxis(x, d, 0) for x, d in pairs]
    shared_is_mapped = any(d is not None for d in dims[batched:])
    if shared_is_mapped or (sums and len(args) > batched + 1):

        def one(slices: list[Array | None]) -> Any:
            return p.bind(*(x if s is None else s for s, x in zip(slices, args, strict=True)), **params)

        outputs = jax.lax.map(one, mapped)
    else:
        wide = [
            jnp.broadcast_to(x, (size, *x.shape)) if m is None else m
            for x, m in zip(args, mapped, strict=True)
        ]
        outputs = p.bind(*wide[:batched], *args[batched:], **params)
    return outputs, [0] * len(outputs)


def define_jvp(p: Primitive, rule: Callable[..., tuple[list[Any], list[Any] | None]]) -> None:
    """`rule(primals, tangents, **params)` returns outputs and their tangents, None if those are all zero."""

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
        outputs, dots = rule(primals, tangents, **params)
        return outputs, dots or [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in outputs]

    ad.primitive_jvps[p] = _plain(jvp)


def define_transpose(p: Primitive, rule: Callable[..., list[Any]]) -> None:
    """`rule(cotangents, *operands, **params)` returns one cotangent or None per operand."""

    def transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
        if all(map(is_zero, cotangents)):
            return [None] * len(operands)
        return rule(list(map(instantiate, cotangents)), *operands, **params)

    ad.primitive_transposes[p] = _plain(transpose)
