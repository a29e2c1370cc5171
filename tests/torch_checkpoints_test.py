"""Checkpoints of the reference program: the same logits, and what does not fit is named."""

import json
import shutil

import chex
import numpy as np
import optax
import pytest
from reference import Reference, draw_images
from setups import set_up

import mixmo_jax
from mixmo_jax.datasets import load_dataset
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation import evaluate
from mixmo_jax.inference import torch_checkpoints
from mixmo_jax.main import main
from mixmo_jax.runs.workdir import RESULTS, Workdir
from mixmo_jax.training.checkpoints import Checkpoints

NETS = {
    "dev_wrn10_2_m2_c10": ("wide_resnet", 10, 2, 2),
    "dev_wrn10_1_m3_c10": ("wide_resnet", 10, 1, 3),
    "dev_wrn10_2_vanilla_c10": ("wide_resnet", 10, 2, 1),
    "dev_preact18_w1_m2_c200": ("preact_resnet", 18, 1, 2),
}


@pytest.fixture(scope="module")
def reference():
    return Reference("dev_wrn10_2_m2_c10")


@pytest.mark.parametrize("net", NETS)
def test_logits_equal_reference(net):
    golden = Reference(net)
    model = mixmo_jax.from_torch(golden.state_dict)
    _, _, _, num_members = NETS[net]
    assert (model.num_members, model.config) == (num_members, None)
    images = draw_images(net, 4, model.image_shape[0])[0]
    logits = model.logits(images, preprocess=False)
    expected = [golden.numbers[f"eval/logits_{m}"] for m in range(num_members)]
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(logits / scale, np.stack(expected, 1) / scale, atol=1e-5)
    folded = model.fold().logits(images, preprocess=False)[:, 0]
    chex.assert_trees_all_close(folded / scale, golden.numbers["eval/logits"] / scale, atol=1e-5)


def test_architecture_follows_from_names_and_shapes():
    for net, expected in NETS.items():
        fields = torch_checkpoints.convert(Reference(net).state_dict)[2]
        assert tuple(fields.values()) == expected


@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_of_arrays(tmp_path, reference, prefix):
    np.savez(tmp_path / "net.npz", **{prefix + k: v for k, v in reference.state_dict.items()})
    model = mixmo_jax.from_torch(tmp_path / "net.npz", class_names="abcdefghij")
    assert model.class_names == tuple("abcdefghij")
    images = np.zeros((1, 32, 32, 3), np.uint8)
    expected = mixmo_jax.from_torch(reference.state_dict).predict_proba(images)
    chex.assert_trees_all_equal(model.predict_proba(images), expected)


def test_published_form_of_a_file(tmp_path, reference):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in reference.state_dict.items()}
    tensors["bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"epoch": 3, "classifier_state_dict": tensors}, tmp_path / "net.ckpt")
    model = mixmo_jax.from_torch(str(tmp_path / "net.ckpt"))
    assert model.num_members == 2


def without(name):
    return lambda arrays: arrays.pop(name)


def with_extra(name):
    return lambda arrays: arrays.update({name: np.zeros(3)})


def cut(name):
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def with_value(name, value):
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer2.0.bn1.weight"), "lacks layer2.0.bn1.weight"),
        (without("list_fc.1.bias"), "lacks list_fc.1.bias"),
        (without("layer1.0.conv1.weight"), "not of a MixMo network: lacks layer1.0.conv1"),
        (with_extra("layer5.0.bn1.weight"), "has no place for layer5.0.bn1.weight"),
        (cut("layer2.0.bn1.weight"), "layer2.0.bn1.weight has the shape"),
        (cut("list_conv1.1.weight"), "list_conv1.1.weight has the shape"),
        (dict.clear, "not of a MixMo network"),
        (with_value("bn1.bias", np.float32(1)), r"bn1.bias is float32 \(\), expected floats"),
        (with_value("bn1.bias", np.full(128, "x")), r"bn1.bias is <U1 \(128,\), expected floats"),
        (with_value("bn1.bias", np.full(128, np.nan)), "bn1.bias is not finite"),
    ],
)
def test_what_does_not_fit_is_named(reference, change, message):
    arrays = dict(reference.state_dict)
    change(arrays)
    with pytest.raises(InputError, match=message) as error:
        mixmo_jax.from_torch(arrays)
    assert "\n" not in str(error.value)


def test_wrong_files(tmp_path, reference):
    with pytest.raises(InputError, match="no such file"):
        mixmo_jax.from_torch(tmp_path / "nothing.npz")
    (tmp_path / "damaged.npz").write_text("x")
    with pytest.raises(InputError, match=r"damaged.npz: damaged"):
        mixmo_jax.from_torch(tmp_path / "damaged.npz")
    (tmp_path / "damaged.ckpt").write_text("x")
    with pytest.raises(InputError, match=r"ckpt: damaged|needs PyTorch"):
        mixmo_jax.from_torch(tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match="class_names: 2, expected 10"):
        mixmo_jax.from_torch(reference.state_dict, class_names=["a", "b"])


@pytest.fixture
def flags(tmp_path):
    """A run to make of a network for the digits, of 3 channels as the image folder's."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in map(str, range(10)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return [
        "",
        "--mode=import_torch",
        f"--checkpoint={tmp_path}/net.npz",
        "--config=image_folder",
        f"--workdir={tmp_path}/run",
        f"--config.dataset.data_dir={tmp_path}/data",
        "--config.dataset.image_size=32",
        "--config.model.name=wide_resnet",
        "--config.model.depth=10",
        "--config.model.width=2",
        "--config.batch_size=20",
    ]


@pytest.mark.parametrize("ema", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_run_is_made_of_a_checkpoint(tmp_path, flags, ema, reference, capsys):
    flags = [*flags, *["--config.optimizer.ema_decay=0.9"] * ema]
    np.savez(tmp_path / "net.npz", **reference.state_dict)
    run = Workdir(tmp_path / "run")
    assert main(flags) == 0
    assert "10 test images" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / RESULTS).read_text())["test_images"] == 10
    assert run.read_config().model.dtype == "float32"  # on any device
    model = mixmo_jax.load(tmp_path / "run", ema=ema)
    images = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    info = run.read_dataset_info()
    normalized = (images / 255 - info["mean"]) / info["std"]
    expected = mixmo_jax.from_torch(reference.state_dict).logits(
        normalized.astype(np.float32), preprocess=False
    )
    chex.assert_trees_all_close(model.logits(images), expected, rtol=1e-4, atol=1e-5)
    # The optimizer has counted the steps, which set its learning rate if the run gets longer.
    config = run.read_config()
    like = set_up(config, load_dataset(config.dataset)).state
    state, _ = Checkpoints(run.checkpoint_dir).restore(like)
    assert optax.tree_utils.tree_get(state.opt_state, "count") == state.step > 0
    # Adam's own count is that of its moments, which are 0.
    tx = optax.adamw(optax.constant_schedule(0.1))
    opt_state = tx.init({"w": np.ones(2)})
    opt_state = optax.tree_utils.tree_set(opt_state, evaluate._is_schedule, count=7)
    counts = [
        int(count) for _, count in optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    ]
    assert sorted(counts) == [0, 7]
    # As where the import failed before.
    shutil.rmtree(run.checkpoint_dir)
    (tmp_path / "run" / RESULTS).unlink()
    assert main(flags) == 0
    capsys.readouterr()
    assert main(flags) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_config_and_checkpoint_must_agree(tmp_path, flags, reference, capsys):
    np.savez(tmp_path / "net.npz", **reference.state_dict)
    assert main([*flags, "--config.model.width=4"]) == 2
    assert "model.width=4: the checkpoint has 2" in capsys.readouterr().err
    assert main([*flags, "--config.model.num_members=3"]) == 2
    assert "model.num_members=3: the checkpoint has 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_must_have_the_channels_of_the_checkpoint(tmp_path, reference, capsys):
    np.savez(tmp_path / "net.npz", **reference.state_dict)
    places = [f"--checkpoint={tmp_path}/net.npz", f"--workdir={tmp_path}/run"]
    assert main(["", "--mode=import_torch", "--config=digits", *places]) == 2
    message = "error: dataset.name='digits': 1 channels, the network has 3\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "run").exists()


def test_state_dict_inside_of_a_checkpoint(reference):
    model = mixmo_jax.from_torch({"epoch": 3, "classifier_state_dict": reference.state_dict})
    assert model.num_members == 2
