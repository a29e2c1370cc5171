"""Pretrained networks: equal after a round trip, and never trusted."""

import json
import pathlib
import shlex
import sys
import types

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import yaml
from PIL import Image
from reference import Reference

import mixmo_jax
from mixmo_jax import datasets, metrics
from mixmo_jax.errors import InputError
from mixmo_jax.inference import pretrained
from mixmo_jax.inference.export import export
from mixmo_jax.inference.model import Model, TrainedNetwork
from mixmo_jax.inference.pretrained import CARD, CONFIG, WEIGHTS, training_command
from mixmo_jax.main import main
from mixmo_jax.models import create_model

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
    assert export(loaded)
    both = mixmo_jax.load([finished_run, tmp_path / "net"])
    assert (len(both.networks), both.temperature) == (2, None)
    with pytest.raises(InputError, match="only a run has a moving average"):
        mixmo_jax.load(tmp_path / "net", ema=True)


def test_commands(finished_run, tmp_path, capsys):
    mixmo_jax.load(finished_run).save_pretrained(tmp_path / "net")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    workdir = f"--workdir={tmp_path / 'net'}"
    assert main(["", "--mode=predict", workdir, str(tmp_path / "image.png")]) == 0
    assert main(["", "--mode=export", workdir, f"--output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().err == ""
    for arguments in (["--mode=evaluate"], ["--config=digits"]):
        assert main(["", workdir, *arguments]) == 2
        assert "holds a pretrained network: it can predict" in capsys.readouterr().err


def test_network_of_the_authors_is_saved(tmp_path):
    model = mixmo_jax.from_torch(Reference("dev_wrn10_1_m3_c10").state_dict)
    model.save_pretrained(tmp_path)
    check_equal(mixmo_jax.load(tmp_path), model)


def test_results_that_json_cannot_hold_are_saved_again(tmp_path):
    scores = {"accuracy": 1.0, "ratio_error": np.inf, "auroc": np.nan}
    for name in ("first", "second"):
        model_of(results={"scores": scores}).save_pretrained(tmp_path / name)
        scores = mixmo_jax.load(tmp_path / name).results["scores"]
        assert scores == pytest.approx(
            {"accuracy": 1.0, "ratio_error": np.inf, "auroc": np.nan}, nan_ok=True
        )


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
    ("spec", "fields"),
    [
        ("digits:cut_mixmo", {}),
        ("cifar100:linear_mixmo+cutmix", {"seed": 3, "mixmo.weight_root": float("inf")}),
        ("tiny_imagenet:mixup", {"optimizer.decay_epochs": (1, 2), "mixmo.unmix": True}),
    ],
)
def test_command_of_the_card_names_the_changed_fields(spec, fields):
    config = mixmo_jax.get_config(spec)
    config.update_from_flattened_dict({**fields, "dataset.data_dir": "/my/data"})
    words = shlex.split(training_command(config).replace("\\\n", ""))
    assert words[:4] == ["python", "-m", "mixmo_jax.main", f"--config={spec}"]
    flags = dict(word.removeprefix("--config.").split("=") for word in words[4:])
    assert flags == {name: str(value) for name, value in fields.items()}


def test_only_its_own_folder_is_replaced(tmp_path, saved, capsys):
    other = model_of(network_of(seed=1))
    other.save_pretrained(saved)
    assert "is replaced" in capsys.readouterr().err
    check_equal(mixmo_jax.load(saved), other)
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    other.save_pretrained(tmp_path / "clone")
    for name in ("notes.txt", CARD, CONFIG, WEIGHTS):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(InputError, match="expected an empty folder"):
            other.save_pretrained(folder)
        assert [f.read_text() for f in folder.iterdir()] == ["{}"]
    with pytest.raises(InputError, match=r"folder=.*cannot be written"):
        other.save_pretrained(saved / CONFIG / "net")


def test_network_of_another_architecture_is_not_saved(tmp_path):
    network = network_of()
    for architecture in (None, {**network.architecture, "width": 2}):
        changed = TrainedNetwork(**{**vars(network), "architecture": architecture})
        with pytest.raises(InputError, match="network 0 is not built by its architecture"):
            Model([changed]).save_pretrained(tmp_path / "net")
    with pytest.raises(InputError, match="license='MIT License': expected an identifier"):
        model_of().save_pretrained(tmp_path / "net", license="MIT License")
    assert not (tmp_path / "net").exists()


def edit(name, change):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(change(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda folder: (folder / CONFIG).unlink(), CONFIG),
        (edit(CONFIG, lambda content: content[:-5]), CONFIG),
        (edit(CONFIG, lambda content: b"[]"), CONFIG),
        (edit(CONFIG, lambda content: content.replace(b'"networks"', b'"nets"')), CONFIG),
        (edit(CONFIG, lambda content: content.replace(b'version": 1', b'version": 2')), CONFIG),
        (edit(CONFIG, lambda content: content.replace(b'width": 1', b'width": 2')), CONFIG),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
        (edit(WEIGHTS, lambda content: content[:-1]), WEIGHTS),
        (edit(WEIGHTS, lambda content: content[:500] + b"x" + content[501:]), WEIGHTS),
        (edit(WEIGHTS, lambda content: b""), WEIGHTS),
    ],
)
def test_damage_is_one_line(saved, damage, name):
    damage(saved)
    with pytest.raises(InputError, match=name) as error:
        mixmo_jax.load(saved)
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_model_that_would_be_replaced(saved, monkeypatch):
    expected = mixmo_jax.load(saved)

    def full(file, content):
        raise InputError(f"{file}: cannot be written: No space left on device")

    monkeypatch.setattr(pretrained, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        model_of(network_of(seed=1)).save_pretrained(saved)
    check_equal(mixmo_jax.load(saved), expected)


# The Hub


class FakeHub(types.ModuleType):
    """Stands in for huggingface_hub: repositories are folders."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []
        self.errors = types.ModuleType("huggingface_hub.errors")
        self.errors.HTTPError = type("HTTPError", (Exception,), {})
        self.ModelCardData = lambda **fields: types.SimpleNamespace(
            to_yaml=lambda: yaml.safe_dump({k: v for k, v in fields.items() if v is not None})
        )
        self.EvalResult = dict

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
    assert main(["", "--mode=predict", "--workdir=hf://me/net", __file__]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="repo_id='net': expected owner/name"):
        model_of().push_to_hub("net")
