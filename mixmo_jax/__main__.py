"""`python -m mixmo_jax` is `python -m mixmo_jax.main`."""

from mixmo_jax.main import run

if __name__ == "__main__":
    run()
