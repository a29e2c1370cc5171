"""Stub: pyproject.toml describes the package, and `pip install .` builds it."""

if __name__ == "__main__":
    raise SystemExit("error: use `pip install .`; pyproject.toml describes the package")
