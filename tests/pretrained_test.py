"""Pretrained networks: equal after a round trip, and never trusted."""

import json
import os
import pathlib
import shlex
import struct
import sys
import types

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import yaml
from hostile_files import JSONS
from PIL import Image
from reference import Reference

import mixmo_jax
from mixmo_jax import config as config_lib
from mixmo_jax import datasets, export, main, metrics, predict
from mixmo_jax.errors import InputError, digest_of
from mixmo_jax.inference import pretrained
from mixmo_jax.inference.model import Model
from mixmo_jax.inference.model_card import training_command
from mixmo_jax.inference.network import TrainedNetwork
from mixmo_jax.inference.pretrained import CARD
from mixmo_jax.inference.pretrained_config import CONFIG
from mixmo_jax.models import create_model
from mixmo_jax.runs.workdir import WEIGHTS

SHIPPED = pathlib.Path(__file__).parent.parent / "experiments" / "results" / "digits-cut_mixmo"
KERNEL = "networks.0.params.stem.kernel"


def network_of(name="tiny", num_members=2, seed=0):
    """A network with random variables, which takes no training."""
    depth, width = {"tiny": (10, 1), "wide_resnet": (10, 1), "preact_resnet": (18, 1)}[name]
    fields = {"name": name, "depth": depth, "width": width, "dtype": "float32"}
    model = create_model(ml_collections.ConfigDict(fields | {"num_members": num_members}), 3)
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    )
    variables = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape, np.float32)), like)
    return TrainedNetwork(
        model, variables, ("a", "ß", "c\nd"), (8, 8, 1), (0.1,), (1 / 3,), 7, architecture=fields
    )


def model_of(*networks, **options):
    return Model(networks or [network_of()], **options)


@pytest.fixture
def saved(tmp_path):
    model_of(temperature=1.5).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(5, 8, 8, 1), dtype=np.uint8)


def check_equal(found, expected):
    """All that a model is, without computing with it."""
    for name in ("ensemble", "temperature", "class_names", "image_shape", "num_members"):
        assert getattr(found, name) == getattr(expected, name), name
    for a, b in zip(found.networks, expected.networks, strict=True):
        assert (a.module, a.mean, a.std) == (b.module, b.mean, b.std)
        assert (a.batch_size, a.epoch, a.config) == (b.batch_size, b.epoch, b.config)
        chex.assert_trees_all_equal(a.variables, b.variables)


@pytest.mark.parametrize(
    "networks",
    [
        *([("tiny", m)] for m in (1, 2, 3)),
        [("wide_resnet", 2)],
        [("preact_resnet", 3)],
        [("tiny", 2), ("wide_resnet", 1)],
    ],
    ids=str,
)
def test_round_trip(tmp_path, images, networks):
    networks = [network_of(*args, seed=i) for i, args in enumerate(networks)]
    for temperature, ensemble in ((None, "logits"), (1 / 3, "probabilities")):
        model = Model(networks, ensemble, temperature)
        model.save_pretrained(tmp_path / "net" / ensemble)
        loaded = mixmo_jax.load(tmp_path / "net" / ensemble)
        check_equal(loaded, model)
    if networks[0].architecture["name"] != "preact_resnet":  # an equal program of equal arrays
        chex.assert_trees_all_equal(loaded.predict_proba(images), model.predict_proba(images))
        chex.assert_trees_all_equal(loaded.logits(images), model.logits(images))


def test_run_becomes_a_pretrained_network(finished_run, tmp_path, images):
    """With its config, its results, its temperature; and without the paths of this machine."""
    model = mixmo_jax.load(finished_run)
    (network,) = model.networks
    place = ml_collections.ConfigDict(network.config.to_dict())
    place.dataset.data_dir = place.dataset.cache_dir = place.compilation_cache = "/my/place"
    secret = TrainedNetwork(**{**vars(network), "config": place})
    Model([secret], temperature=model.temperature, results=model.results).save_pretrained(
        tmp_path / "net", license="mit"
    )
    loaded = mixmo_jax.load(str(tmp_path / "net"))
    check_equal(loaded, model)
    assert json.loads((finished_run / "results.json").read_text()).items() >= loaded.results.items()
    chex.assert_trees_all_equal(loaded.logits(images), model.logits(images))
    for file in (CARD, CONFIG):
        text = (tmp_path / "net" / file).read_text()
        assert "/my/" not in text and str(finished_run) not in text
    assert mixmo_jax.load(tmp_path / "net", ensemble="probabilities").temperature is None
    # It is used as that of the run, alone and together with it.
    check_equal(loaded.fold(), model.fold())
    check_equal(loaded.select([1]), model.select([1]))
    labels = np.arange(5)
    calibrated = loaded.calibrate(images, labels)
    assert calibrated.temperature == model.calibrate(images, labels).temperature
    assert calibrated.results is None
    assert export.export(loaded)
    both = mixmo_jax.load([finished_run, tmp_path / "net"])
    assert (len(both.networks), both.temperature) == (2, None)
    with pytest.raises(InputError, match="holds no moving average"):
        mixmo_jax.load(tmp_path / "net", ema=True)


def test_commands(finished_run, tmp_path, capsys):
    mixmo_jax.load(finished_run).save_pretrained(tmp_path / "net")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    workdir = f"--workdir={tmp_path / 'net'}"
    assert predict.main(["", workdir, str(tmp_path / "image.png")]) == 0
    assert export.main(["", workdir, f"--output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().err == ""
    for arguments in (["--mode=evaluate"], ["--config=digits"]):
        assert main.main(["", workdir, *arguments]) == 2
        assert "holds a pretrained network: it can predict" in capsys.readouterr().err


def test_network_of_the_authors_is_saved(tmp_path):
    model = mixmo_jax.from_torch(Reference("dev_wrn10_1_m3_c10").state_dict)
    model.save_pretrained(tmp_path)
    check_equal(mixmo_jax.load(tmp_path), model)


def test_derived_models_are_saved(tmp_path):
    """Also those with another number of members than the run."""
    model = model_of(network_of(num_members=3))
    for name, derived in {"fold": model.fold(), "select": model.select([2, 0])}.items():
        derived.save_pretrained(tmp_path / name)
        check_equal(mixmo_jax.load(tmp_path / name), derived)


def test_shipped_network():
    """It is as good as its card says, on the test images of the digits."""
    model = mixmo_jax.load(SHIPPED)
    test = datasets.load_dataset(model.config.dataset).test
    scores = metrics.ensemble_metrics(model.logits(np.asarray(test.images)), test.labels)
    assert scores["accuracy"] >= 0.98
    _, header, text = (SHIPPED / CARD).read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert (header["library_name"], header["license"]) == ("mixmo_jax", "apache-2.0")
    (result,) = header["model-index"][0]["results"]
    listed = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert set(listed) == {"accuracy", "nll", "brier", "ece"}
    assert listed == pytest.approx({name: scores[name] for name in listed}, rel=1e-4)
    assert f"| accuracy | {scores['accuracy']:.4f} |" in text
    for file in (CARD, CONFIG):
        text = (SHIPPED / file).read_text()
        assert not any(place in text for place in ("/tmp", "/home", "/root", "/work"))


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        ("digits:cut_mixmo", []),
        ("cifar100:linear_mixmo+cutmix", ["seed=3", "mixmo.weight_root=inf", "batch_size=32"]),
        ("tiny_imagenet:mixup", ["optimizer.decay_epochs=(1, 2)", "mixmo.unmix=True"]),
    ],
)
def test_command_of_the_card_repeats_the_config(spec, overrides):
    flags = [f"--config.{override}" for override in overrides]
    config = config_lib.parse(spec, flags)[1]
    config.dataset.data_dir = "/my/data"
    words = shlex.split(training_command(config).replace("\\\n", ""))
    assert words[:4] == ["python", "-m", "mixmo_jax.main", f"--config={spec}"]
    config.dataset.data_dir = ""
    assert config_lib.parse(spec, words[4:])[1] == config


# What a folder holds is not overwritten, and what cannot be loaded is not written.


def test_only_its_own_folder_is_replaced(tmp_path, saved, capsys):
    other = model_of(network_of(seed=1))
    other.save_pretrained(saved)
    assert "net: the pretrained network in it is replaced" in capsys.readouterr().err
    check_equal(mixmo_jax.load(saved), other)
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    other.save_pretrained(tmp_path / "clone")
    for name in ("notes.txt", CARD, CONFIG, WEIGHTS):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(InputError, match="expected an empty folder or one of save_pretrained"):
            other.save_pretrained(folder)
        assert [f.read_text() for f in folder.iterdir()] == ["{}"]
    for place in ("a\0b", saved / CONFIG, saved / CONFIG / "net"):
        with pytest.raises(InputError, match=r"folder=.*cannot be written"):
            other.save_pretrained(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: {"architecture": None}, "network 0 has no architecture"),
        (lambda net: {"architecture": {**net.architecture, "width": 2}}, "not what its arch"),
        (lambda net: {"variables": {"params": {}}}, "other variables than"),
        (
            lambda net: {"variables": jax.tree.map(lambda x: x * np.nan, net.variables)},
            "expected finite float32",
        ),
    ],
)
def test_model_that_could_not_be_loaded_is_not_saved(tmp_path, change, message):
    network = network_of()
    changed = TrainedNetwork(**{**vars(network), **change(network)})
    with pytest.raises(InputError, match=message):
        Model([changed]).save_pretrained(tmp_path / "net")
    with pytest.raises(InputError, match="license='MIT License': expected an identifier"):
        model_of().save_pretrained(tmp_path / "net", license="MIT License")
    assert not (tmp_path / "net").exists()


# Damage: weights


def arrays(change):
    """Weights that are sound but not those of the network, with a digest that fits."""

    def damage(folder):
        flat = safetensors.numpy.load_file(folder / WEIGHTS)
        change(flat)
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(flat))

    return damage


def content(change):
    def damage(folder):
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return damage


def header(**tensors):
    text = json.dumps(tensors).encode()
    return content(lambda _: struct.pack("<Q", len(text)) + text + b"1234")


def scalar(**fields):
    return header(**{KERNEL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}})


def pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def fill(value):
    return arrays(lambda flat: flat[KERNEL].fill(value))


BAD_WEIGHTS = {
    "missing": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read: No such file"),
    "a pipe": (pipe, "expected a regular file"),
    "empty": (content(lambda _: b""), "header too small"),
    "cut off": (content(lambda data: data[:-1]), "damaged"),
    "longer": (content(lambda data: data + b"x"), "damaged"),
    "a pickle": (content(lambda _: b"\x80\x04N."), "damaged"),
    "header of 2**62 bytes": (content(lambda d: struct.pack("<Q", 2**62) + d[8:]), "too large"),
    "nested header": (content(lambda _: struct.pack("<Q", 9000) + b"[" * 9000), "invalid JSON"),
    "shape of 2**62": (scalar(shape=[2**62, 4]), "overflow"),
    "negative shape": (scalar(shape=[-1]), "invalid JSON"),
    "unknown dtype": (scalar(dtype="O"), "invalid JSON"),
    "float8": (scalar(dtype="F8_E4M3", shape=[4]), "is F8_E4M3|lacks"),
    "nothing of much": (
        scalar(shape=[2**40, 0, 2**40], data_offsets=[0, 0]),
        "not fully covered|is F32|lacks",
    ),
    "an array missing": (arrays(lambda flat: flat.pop(KERNEL)), f"lacks {KERNEL}"),
    "another name": (
        arrays(lambda flat: flat.update({"x\ny": flat.pop(KERNEL)})),
        f"lacks {KERNEL}",
    ),
    "an array more": (
        arrays(lambda flat: flat.update(x=np.zeros(1))),
        "has no place for x",
    ),
    "another shape": (
        arrays(lambda flat: flat.update({KERNEL: flat[KERNEL][:1].copy()})),
        f"{KERNEL} is F32 .1, 3, 3, 1, 8., expected F32 .2,",
    ),
    "another dtype": (
        arrays(lambda flat: flat.update({KERNEL: flat[KERNEL].astype("f8")})),
        f"{KERNEL} is F64 .*expected F32",
    ),
    "other numbers": (fill(0), "SHA-256 differs"),
}


def check_refused(folder, file, message):
    with pytest.raises(InputError, match=message) as error:
        mixmo_jax.load(folder)
    text = str(error.value)
    assert str(folder / file) in text and "\n" not in text and len(text) < 1000, text


@pytest.mark.parametrize("damage", BAD_WEIGHTS)
def test_damaged_weights_are_named(saved, damage):
    change, message = BAD_WEIGHTS[damage]
    change(saved)
    check_refused(saved, WEIGHTS, message)


def test_every_damaged_byte_is_found(saved):
    """Also where the digest fits: then it is one network or another, or an error."""
    file, rng = saved / WEIGHTS, np.random.default_rng(0)
    before, described = file.read_bytes(), (saved / CONFIG).read_bytes()
    for position in [*range(8), *rng.integers(8, len(before), 16)]:
        damaged = bytearray(before)
        damaged[position] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        check_refused(saved, WEIGHTS, None)
        sign(saved)
        try:
            mixmo_jax.load(saved)
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        (saved / CONFIG).write_bytes(described)


def sign(folder):
    """Makes the digest fit the weights, as who means harm would."""
    edit(folder, weights_sha256=digest_of(folder / WEIGHTS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(saved, value):
    fill(value)(saved)
    sign(saved)
    check_refused(saved, WEIGHTS, f"{KERNEL} is not finite")
    fill(1)(saved)
    sign(saved)
    assert mixmo_jax.load(saved)


def test_a_full_disk_leaves_the_model_that_would_be_replaced(saved, monkeypatch, capsys):
    before = {file: file.read_bytes() for file in sorted(saved.iterdir())}
    monkeypatch.setattr(pretrained, "write_bytes", refuse)
    other = model_of(network_of(seed=1), temperature=2.0)
    with pytest.raises(InputError, match="No space left"):
        other.save_pretrained(saved)
    assert "is replaced" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in sorted(saved.iterdir())} == before


def refuse(file, content):
    raise InputError(f"{file}: cannot be written: No space left on device")


# Damage: the config


def edit(folder, **fields):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **fields}))


def edit_network(folder, **fields):
    (network,) = json.loads((folder / CONFIG).read_text())["networks"]
    model = {k: fields.pop(k) for k in list(fields) if k in network["model"] or k == "new"}
    edit(folder, networks=[{**network, "model": network["model"] | model, **fields}])


BAD_FIELDS = [
    ("format_version", (2, None, "1"), "format_version=.*expected 1"),
    ("ensemble", ("mean", 1, []), "ensemble="),
    ("temperature", ("1", 0, -1, True, [1], float("nan"), 10**400), "temperature="),
    ("image_shape", ([8, 8], [8, 8, 0], [8, 8, 10**9], [8.0, 8, 1], "8", None), "image_shape="),
    ("class_names", ([], "abc", [1, 2, 3], None), "class_names="),
    ("networks", ([], {}, [1], None, [[]]), "networks="),
    ("results", (1, "x", []), "results="),
    ("results", ({"scores": 1}, {"scores": {"a": "b"}}), "scores="),
    ("results", ({"test_images": -1},), "test_images="),
    ("results", ({"environment": {"jax": []}},), "environment="),
    ("results", ({"temperature_fitted_on": "x\ny"},), "temperature_fitted_on="),
    ("weights_sha256", (None, 1), "weights_sha256="),
]
BAD_NETWORK_FIELDS = [
    ("model", (None, [], "x"), "model="),
    ("new", (1,), "no such config field"),
    ("name", ("resnet", 1, None, "../x"), "model.name="),
    ("depth", (10**9, 0, -1, "10", 1.5, None), "model.depth="),
    ("depth", (9999,), "model.depth=9999: expected at most 100"),
    ("width", (10**9, 0, True), "model.width="),
    ("num_members", (10**9, 0), "model.num_members="),
    ("dtype", ("float8", 32), "model.dtype="),
    ("mean", ([], [0.1, 0.2], "x", [None], [10**400]), "mean|expected 1 means"),
    ("std", ([0], [-1], None), "std="),
    ("batch_size", (0, 10**12, "7"), "batch_size="),
    ("epoch", (-1, "x", 1.5), "epoch="),
    ("config", ([], "x"), "config="),
    ("config", ({"method": "x"},), "method='x': expected"),
    ("config", ({"new\n": 1},), "no such config field"),
]


@pytest.mark.parametrize(
    ("edit_field", "row"),
    [*((edit, row) for row in BAD_FIELDS), *((edit_network, row) for row in BAD_NETWORK_FIELDS)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_wrong_fields_are_named(saved, edit_field, row):
    field, values, message = row
    before = (saved / CONFIG).read_bytes()
    for value in values:
        edit_field(saved, **{field: value})
        check_refused(saved, CONFIG, message)
        (saved / CONFIG).write_bytes(before)
    assert mixmo_jax.load(saved)  # as it was


@pytest.mark.parametrize("text", [*JSONS, "missing"])
def test_config_that_is_no_dictionary_is_named(saved, text):
    (saved / CONFIG).unlink()
    if text != "missing":
        (saved / CONFIG).write_bytes(JSONS[text])
    check_refused(saved, CONFIG, None)


def test_absurd_sizes_are_refused_before_anything_is_allocated(saved):
    """Sizes that the config may have, but not these files."""
    for fields in ({"width": 10_000}, {"num_members": 1000}):
        edit_network(saved, **fields)
        check_refused(saved, WEIGHTS, "expected F32")
        edit_network(saved, width=1, num_members=2)
    edit(saved, image_shape=[10_000, 10_000, 1])
    assert mixmo_jax.load(saved).image_shape == (10_000, 10_000, 1)


def test_files_of_two_models_do_not_pass_for_one(tmp_path, saved):
    """As after an interruption between the files."""
    model_of(network_of(seed=1), temperature=3.0).save_pretrained(tmp_path / "other")
    (saved / CONFIG).write_bytes((tmp_path / "other" / CONFIG).read_bytes())
    check_refused(saved, WEIGHTS, "SHA-256 differs")
    (saved / WEIGHTS).unlink()
    check_refused(saved, WEIGHTS, "No such file")
    with pytest.raises(InputError, match="holds no run"):
        mixmo_jax.load("a\0b")


# The Hub


class FakeHub(types.ModuleType):
    """Stands in for huggingface_hub: repositories are folders."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []
        self.errors = types.ModuleType("huggingface_hub.errors")
        self.errors.HTTPError = type("HTTPError", (Exception,), {})

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.calls.append((repo_id, private))
        (self.root / repo_id).mkdir(parents=True)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        for file in pathlib.Path(folder_path).iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        self.calls.append((repo_id, revision, allow_patterns))
        if not (self.root / repo_id).exists():
            raise self.errors.HTTPError("404\nnot found")
        return str(self.root / repo_id)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)
    return hub


def test_hub_round_trip(fake_hub):
    model = model_of(temperature=2.0)
    assert model.push_to_hub("me/net", private=True, license="mit") == "hf://me/net"
    check_equal(mixmo_jax.load("hf://me/net"), model)
    assert len(mixmo_jax.load(["hf://me/net", "hf://me/net@v1"]).networks) == 2
    files = [CONFIG, WEIGHTS]
    revisions = [("me/net", revision, files) for revision in (None, None, "v1")]
    assert fake_hub.calls == [("me/net", True), *revisions]
    card = (fake_hub.root / "me" / "net" / CARD).read_text()
    assert 'mixmo_jax.load("hf://me/net")' in card and "license: mit" in card


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/other", "hf://me/other: HTTPError: 404 not found$"),
        ("hf://net", "expected hf://owner/name"),
        ("hf://me/net@", "expected hf://owner/name"),
        ("hf://me/net/x", "expected hf://owner/name"),
        ("hf://me/\0", "expected hf://owner/name"),
    ],
)
def test_addresses_that_lead_nowhere(fake_hub, address, message):
    with pytest.raises(InputError, match=message):
        mixmo_jax.load(address)


def test_hub_is_optional(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = "hf://me/net: needs huggingface_hub: pip install huggingface_hub"
    with pytest.raises(InputError, match=message):
        model_of().push_to_hub("me/net")
    assert predict.main(["", "--workdir=hf://me/net", __file__]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="repo_id='net': expected owner/name"):
        model_of().push_to_hub("net")
