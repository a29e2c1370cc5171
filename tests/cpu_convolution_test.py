"""The gradients that a CPU computes in its own way are XLA's; elsewhere they are left to XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixmo_jax.models import cpu_convolution
from mixmo_jax.models.cpu_convolution import convolve

# Shape of the images, kernel, stride, padding.
CASES = [
    ((8, 12, 10, 3), (3, 3, 3, 4), 1, "SAME"),
    ((8, 12, 10, 3), (3, 3, 3, 4), 2, "SAME"),
    ((5, 9, 7, 2), (3, 3, 2, 3), 2, 1),
    ((6, 8, 8, 4), (1, 1, 4, 5), 2, "SAME"),
    ((1, 7, 6, 2), (2, 3, 2, 3), 1, "VALID"),
]


def native(x, kernel, stride, padding):
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=dimensions, precision="highest"
    )


def gradients(function, stride, padding, x, kernel, weights):
    def loss(x, kernel):
        return (function(x, kernel, stride, padding) * weights).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def draw(shape, kernel_shape, stride, padding, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys[:2], (shape, kernel_shape), strict=True)
    )
    output = jax.eval_shape(lambda x, kernel: native(x, kernel, stride, padding), x, kernel)
    return x, kernel, jax.random.normal(keys[2], output.shape, dtype)


@pytest.mark.parametrize(("shape", "kernel_shape", "stride", "padding"), CASES)
@pytest.mark.parametrize("block_bytes", [4000, 2**21])
def test_gradients_are_those_of_xla(shape, kernel_shape, stride, padding, block_bytes, monkeypatch):
    """In float64 only the order of the sum differs, whatever the size of the blocks."""
    monkeypatch.setattr(cpu_convolution, "_BLOCK_BYTES", block_bytes)
    with jax.enable_x64(True):
        x, kernel, weights = draw(shape, kernel_shape, stride, padding, jnp.float64)
        ours, xla = (
            gradients(f, stride, padding, x, kernel, weights)(x, kernel) for f in (convolve, native)
        )
        for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(xla), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("shape", "kernel_shape", "stride", "padding"), CASES)
def test_the_input_gradient_of_narrow_dtypes_is_that_of_xla(
    shape, kernel_shape, stride, padding, monkeypatch
):
    monkeypatch.setattr(cpu_convolution, "is_wide", lambda dtype: False)
    with jax.enable_x64(True):
        x, kernel, weights = draw(shape, kernel_shape, stride, padding, jnp.float64)

        def gradient(function):
            return jax.grad(lambda x: (function(x, kernel, stride, padding) * weights).sum())(x)

        np.testing.assert_allclose(gradient(convolve), gradient(native), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_summed_in_float32(stride):
    """The gradients are those of the rounded arguments, rounded once; those of blocks twice."""
    x, kernel, weights = draw((64, 16, 16, 3), (3, 3, 3, 4), stride, "SAME", jnp.bfloat16)
    actual = gradients(convolve, stride, "SAME", x, kernel, weights)(x, kernel)[1]
    wide = [array.astype(jnp.float32) for array in (x, kernel, weights)]
    expected = gradients(native, stride, "SAME", *wide)(*wide[:2])[1]
    for found, exact in zip(actual, expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize(("platform", "loops"), [("tpu", 0), ("cuda", 0), ("cpu", 1)])
def test_only_a_cpu_has_a_program_of_its_own(platform, loops):
    """Elsewhere the convolutions are those of XLA, with nothing beside them."""
    x, kernel, weights = draw((8, 12, 10, 3), (3, 3, 3, 4), 2, "SAME", jnp.float32)
    found, texts = {}, {}
    for function in (convolve, native):
        step = gradients(function, 2, "SAME", x, kernel, weights)
        text = step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        texts[function] = text
        assert text.count("stablehlo.while") == (loops if function is convolve else 0)
        lines = [line.split("=", 1)[1] for line in text.splitlines() if "convolution" in line]
        found[function] = sorted(re.sub(r"%\w+", "", line) for line in lines)
    assert len(found[native]) == 3
    if not loops:
        assert found[convolve] == found[native]
        assert "dot_general" not in texts[convolve]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cpu_computes_bfloat16_in_the_form_that_its_matrix_units_take(stride):
    """Forward convolutions and products: no reversed or dilated ones, no result in float32."""
    x, kernel, weights = draw((8, 12, 10, 3), (3, 3, 3, 4), stride, "SAME", jnp.bfloat16)
    step = gradients(convolve, stride, "SAME", x, kernel, weights)
    text = step.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 2
    for line in lines:
        assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line
        assert "reverse = [false, false]" in line
        assert "lhs_dilate = [1, 1]" in line
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all(line.endswith("bf16>") for line in products)
    assert text.count("optimization_barrier") == 1
