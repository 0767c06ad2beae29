"""Which device runs a trial, told by the trial itself."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

_partition_id = Primitive("partition_id")
_partition_id.def_abstract_eval(lambda: jax.core.ShapedArray((), jnp.uint32))
mlir.register_lowering(_partition_id, lambda context: stablehlo.PartitionIdOp().results)


def device():
    """Return, within `train` or `step`, its number among the devices of the sweep, an int32 scalar.

    `jax.lax.axis_index` needs the name of an axis, which `train` does not know.
    """
    return _partition_id.bind().astype(jnp.int32)
