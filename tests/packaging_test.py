"""Installed as an editable checkout, from a wheel, or not at all: the package works anywhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parent.parent

CHECK = """
import importlib.util
import mixmo_jax, mixmo_jax.main
from mixmo_jax.configs import common, digits
from mixmo_jax.runs import workdir
assert all(getattr(mixmo_jax, name) for name in mixmo_jax.__all__)
for name in ("mixmo_jax", "setup", "tests", "experiments"):
    assert importlib.util.find_spec(f"mixmo_jax.{name}") is None, name
print(mixmo_jax.__version__, mixmo_jax.__file__)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout as git makes it, beside the folder of some runs."""
    place = tmp_path_factory.mktemp("place")
    names = ("mixmo_jax", "configs", "tests", "experiments", "setup.py")
    names += ("pyproject.toml", "README.md", "LICENSE")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in names:
        source, target = ROOT / name, place / "mixmo_jax" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    (place / "runs" / "digits").mkdir(parents=True)
    return place / "mixmo_jax"


def run(python, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["editable", "wheel"])
def installed(request, clone, tmp_path):
    """The Python of a new environment, with what this one has and the package."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    option = ["--editable"] if request.param == "editable" else []
    pip = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-build-isolation"]
    run(sys.executable, *pip, "--quiet", *option, str(clone), cwd=tmp_path)
    place = clone if option else site
    return python, place / "mixmo_jax" / "__init__.py"


def test_installed_package_works_from_any_folder(installed, clone, tmp_path):
    """Also from the parent of the clone, where a folder has the name of the package."""
    python, file = installed
    assert run(python, "-c", CHECK, cwd=clone.parent).split()[1] == str(file)
    where = "import mixmo_jax; print(mixmo_jax.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).strip() == str(file)
    shown = run(python.with_name("mixmo_jax"), "--help", cwd=clone.parent)
    assert "--config.FIELD=VALUE" in shown


def test_bare_checkout_works(clone):
    packages = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    output = run(sys.executable, "-S", "-c", packages + CHECK, cwd=clone)
    assert output.split()[1] == str(clone / "mixmo_jax" / "__init__.py")


def test_setup_is_a_stub_that_says_what_to_do(clone):
    done = subprocess.run(
        [sys.executable, "setup.py", "install"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install ." in done.stderr
