"""Convolution with gradients that are also fast on a CPU.

Shapes: B batch size, [H, W, I] input, [h, w, O] output, [u, v] kernel.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_BLOCK_BYTES = 2**21  # the columns of one block, which then stay in a core's cache


def conv_general_dilated(x, kernel, window_strides, padding, **kwargs) -> jax.Array:
    """`convolve` in the form that `nn.Conv` takes; strides and paddings are square."""
    del kwargs  # neither dilation nor groups
    padding = padding if isinstance(padding, str) else padding[0][0]
    return convolve(x, kernel, window_strides[0], padding)


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """Convolves images.

    Float32 is not rounded to bfloat16 or TF32, the default of JAX on TPU and NVIDIA GPUs.

    Args:
      x: [B, H, W, I] float.
      kernel: [u, v, I, O], same dtype.
      stride: The stride along both axes.
      padding: "SAME", "VALID", or the number of zeros at each edge.

    Returns:
      [B, h, w, O], same dtype.
    """
    if isinstance(padding, int):
        pads = ((padding, padding), (padding, padding))
    else:
        pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    return _convolve(x, kernel, stride, tuple(pads))


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """Returns the precision of products: float32 is not rounded."""
    return jax.lax.Precision.HIGHEST if is_wide(dtype) else jax.lax.Precision.DEFAULT


def is_wide(dtype: jnp.dtype) -> bool:
    """Returns whether a float dtype is at least as wide as float32."""
    return jnp.dtype(dtype).itemsize >= 4


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
    """Gradients by XLA, except on CPU, where its weight gradient is slow."""
    x, kernel = residuals
    options = {"stride": stride, "pads": pads}

    def on_cpu(x, kernel, dy):
        x_vjp = jax.vjp(lambda x: _native(x, kernel, **options), x)[1]
        dx = x_vjp(dy)[0] if is_wide(x.dtype) else _transposed(dy, kernel, x.shape, **options)
        return dx, _in_blocks(x, dy, kernel_shape=kernel.shape, **options)

    def elsewhere(x, kernel, dy):
        return jax.vjp(functools.partial(_native, **options), x, kernel)[1](dy)

    return jax.lax.platform_dependent(x, kernel, dy, cpu=on_cpu, default=elsewhere)


_convolve.defvjp(_forward, _backward)


def _transposed(
    dy: jax.Array,
    kernel: jax.Array,
    shape: Sequence[int],
    *,
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> jax.Array:
    """The input gradient as an ordinary convolution: the only form that oneDNN computes.

    See `XLA_FLAGS` in docs/training.md for what that gains in bfloat16.
    """
    sides = zip(shape[1:3], kernel.shape[:2], dy.shape[1:3], pads, strict=True)
    around = [
        (window - 1 - low, length - 1 + low - stride * (count - 1), stride - 1)
        for length, window, count, (low, _) in sides
    ]
    dy = jax.lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # Without the barrier XLA turns this into the form of a gradient again.
    dy, kernel = jax.lax.optimization_barrier((dy, kernel))
    return _native(dy, kernel, 1, ((0, 0), (0, 0)))


def _in_blocks(
    x: jax.Array,
    dy: jax.Array,
    *,
    kernel_shape: Sequence[int],
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> jax.Array:
    """The weight gradient as products of blocks of the batch, summed in float32 or wider.

    XLA lowers it to a convolution over batch and space and transposes both operands, which takes
    two to three times as long on a CPU. The product of a block has the dtype of its factors: oneDNN
    computes no other.
    """
    u, v, features, outputs = kernel_shape
    batch, h, w, _ = dy.shape
    image_bytes = (x.shape[1] + sum(pads[0])) * w * v * features * x.dtype.itemsize
    size = max(
        n
        for n in range(1, batch + 1)
        if batch % n == 0 and (n * image_bytes <= _BLOCK_BYTES or n == 1)
    )
    dtype = x.dtype if is_wide(x.dtype) else jnp.float32

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
            ).astype(dtype)
            for i in range(u)
        ]
        return total + jnp.stack(products), None

    blocks = [array.reshape(-1, size, *array.shape[1:]) for array in (x, dy)]
    total = jax.lax.scan(add, jnp.zeros((u, v * features, outputs), dtype), tuple(blocks))[0]
    return total.reshape(kernel_shape).astype(x.dtype)
