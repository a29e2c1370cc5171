"""The convolutions and normalizations that all networks here are made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixmo_jax.models.cpu_convolution import convolve, is_wide

# He normal on the fan-in, truncated at two standard deviations; the scale is that after the
# truncation. The leading axis of a stacked kernel [M, ...] does not count.
conv_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
stacked_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", batch_axis=(0,))


class Conv(nn.Module):
    """A convolution without bias: [B, H, W, I] → [B, h, w, O]."""

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: str | int = "SAME"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)


def make_conv(dtype: jnp.dtype, padding: str | int) -> functools.partial:
    """Returns a constructor `conv(features, kernel_size, strides, …)` of one convolution."""
    return functools.partial(Conv, padding=padding, dtype=dtype)


def make_norm(dtype: jnp.dtype, train: bool, axis_name: str | None) -> functools.partial:
    """Returns a constructor of one BatchNorm.

    The running variance is the biased one of the batch; the reference program stores the unbiased
    one, n / (n - 1) times as large, n being batch size times map: 1 + 2.4e-4 at WRN's last stage
    for a batch of 64.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over the map, in float32 or wider: [B, h, w, F] → [B, F]."""
    return x.astype(x.dtype if is_wide(x.dtype) else jnp.float32).mean((1, 2))
