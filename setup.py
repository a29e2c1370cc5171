"""Installation; `pip install .` or, to work on it, `pip install -e ".[test]"`."""

from setuptools import setup

setup(
    name="mixmo_jax",
    version="0.1.0",
    description="MixMo in JAX: an ensemble of subnetworks inside one network",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configs lie at the top, for reading, and are installed as mixmo_jax.configs.
    packages=[
        "mixmo_jax",
        "mixmo_jax.configs",
        "mixmo_jax.datasets",
        "mixmo_jax.mixing",
        "mixmo_jax.models",
    ],
    package_dir={"mixmo_jax.configs": "configs"},
    install_requires=[
        "absl-py",
        "chex",
        "flatbuffers",  # jax.export needs it and does not say so
        "flax>=0.12",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets",
        "tqdm",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10"],
        "torch": ["torch"],
        "tpu": ["jax[tpu]>=0.10"],
        "test": ["pytest", "pytest-cov", "pytest-xdist", "ruff"],
    },
)
