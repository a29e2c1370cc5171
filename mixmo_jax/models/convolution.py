"""The convolution of all networks, whose weight gradient is fast on a CPU, too.

Glossary: B batch, [H, W, I] input, [h, w, O] output, [u, v] kernel.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_BLOCK_BYTES = 2**21  # of the columns of one block, which then stay in a core's cache


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """Convolves images, in the dtype of both arguments.

    Float32 is not rounded to bfloat16 or TF32 on the way, as is JAX's default on TPU and NVIDIA
    GPUs.

    Args:
      x: [B, H, W, I] float.
      kernel: [u, v, I, O], of the same dtype.
      stride: The stride along both axes.
      padding: "SAME", "VALID", or the number of zeros on each of the four sides.

    Returns:
      [B, h, w, O].
    """
    if isinstance(padding, int):
        pads = ((padding, padding), (padding, padding))
    else:
        pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    return _convolve(x, kernel, stride, tuple(pads))


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """The precision of products in a dtype: float32 is not rounded on the way."""
    wide = jnp.dtype(dtype).itemsize >= 4
    return jax.lax.Precision.HIGHEST if wide else jax.lax.Precision.DEFAULT


def _native(x, kernel, stride, pads):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(x.dtype),
    )


_convolve = jax.custom_vjp(_native, nondiff_argnums=(2, 3))


def _forward(x, kernel, stride, pads):
    return _native(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, residuals, dy):
    """XLA's own gradients; on a CPU, where its weight gradient is slow, another one."""
    x, kernel = residuals
    x_vjp = jax.vjp(lambda x: _native(x, kernel, stride, pads), x)[1]
    kernel_vjp = jax.vjp(lambda kernel: _native(x, kernel, stride, pads), kernel)[1]
    gradient = jax.lax.platform_dependent(
        x,
        dy,
        cpu=functools.partial(_in_blocks, kernel_shape=kernel.shape, stride=stride, pads=pads),
        default=lambda x, dy: kernel_vjp(dy)[0],
    )
    return x_vjp(dy)[0], gradient


_convolve.defvjp(_forward, _backward)


def _in_blocks(
    x: jax.Array,
    dy: jax.Array,
    *,
    kernel_shape: Sequence[int],
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> jax.Array:
    """The weight gradient as products of small blocks of the batch, summed in float32 or wider.

    XLA takes it for a convolution over batch and map, and transposes both operands for it. That
    takes two to three times as long as this on a CPU.
    """
    u, v, features, outputs = kernel_shape
    batch, h, w, _ = dy.shape
    image_bytes = (x.shape[1] + sum(pads[0])) * w * v * features * x.dtype.itemsize
    size = max(
        n
        for n in range(1, batch + 1)
        if batch % n == 0 and (n * image_bytes <= _BLOCK_BYTES or n == 1)
    )
    dtype = x.dtype if x.dtype.itemsize >= 4 else jnp.float32

    def add(total, block):
        x, dy = block
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        # [n, H, W, I] → [n, H, w, v I]
        columns = [x[:, :, j : j + stride * (w - 1) + 1 : stride] for j in range(v)]
        columns = jnp.concatenate(columns, -1)
        dy = dy.reshape(-1, outputs)
        products = [
            jax.lax.dot_general(
                # [n, h, w, v I] → [n h w, v I]
                columns[:, i : i + stride * (h - 1) + 1 : stride].reshape(-1, v * features),
                dy,
                (((0,), (0,)), ((), ())),
                precision=precision_of(x.dtype),
                preferred_element_type=dtype,
            )
            for i in range(u)
        ]
        return total + jnp.stack(products), None

    blocks = [array.reshape(-1, size, *array.shape[1:]) for array in (x, dy)]
    total = jax.lax.scan(add, jnp.zeros((u, v * features, outputs), dtype), tuple(blocks))[0]
    return total.reshape(kernel_shape).astype(x.dtype)
