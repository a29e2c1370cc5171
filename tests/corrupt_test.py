"""Generated corruptions: what each does to images, and files that the evaluation reads."""

import io
import json
import sys

import corrupt
import corruption_gallery
import numpy as np
import pytest
from corruption_registry import CORRUPTIONS
from PIL import Image
from scipy import ndimage

from mixmo_jax.datasets import Split
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation.corruptions import score_corruptions

SEVERITIES = (1, 2, 3, 4, 5)
DETERMINISTIC = {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
    *("gaussian_blur", "saturate"),
}
# In the published parameters of these, more than the strength changes with the severity.
UNSTEADY = {"glass_blur", "snow", "frost", "elastic_transform", "spatter", "saturate"}


def smooth_images(n, side, channels=3):
    """Images with colored shapes, uint8 [n, side, side, channels]."""
    rng = np.random.default_rng(0)
    waves = ndimage.gaussian_filter(rng.normal(size=(n, side, side, channels)), (0, 2, 2, 0))
    return (110 + 40 * waves / waves.std()).clip(0, 255).astype(np.uint8)


def corrupted(name, images, severity, seed=0):
    return CORRUPTIONS[name](np.random.default_rng(seed), images, severity)


@pytest.mark.parametrize("shape", [(9, 20, 3), (1, 1, 1)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_and_dtype_stay_and_the_images_given_too(name, shape):
    if CORRUPTIONS[name].needs_color and shape[-1] == 1:
        with pytest.raises(InputError, match="saturate: needs images of three channels"):
            corrupted(name, np.zeros((2, *shape), np.uint8), 1)
        return
    for level in (0, 255):
        images = np.full((2, *shape), level, np.uint8)
        for severity in SEVERITIES:
            result = corrupted(name, images, severity)
            assert result.shape == images.shape
            assert result.dtype == np.uint8
        assert (images == level).all()


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_increases_the_distance(name, side):
    images = smooth_images(16, side)
    distances = [
        np.sqrt(np.mean((corrupted(name, images, s) - images.astype(float)) ** 2))
        for s in SEVERITIES
    ]
    if name not in UNSTEADY:
        assert (np.diff(distances) >= 0).all(), distances
        assert distances[-1] > distances[0]
    assert min(distances[1:]) > 0.1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_random_ones_depend_on_the_seed_and_nothing_else(name):
    images = smooth_images(4, 32)
    first = corrupted(name, images, 5)
    np.testing.assert_array_equal(corrupted(name, images, 5), first)
    assert (corrupted(name, images, 5, seed=1) == first).all() == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - DETERMINISTIC))
def test_no_two_images_are_corrupted_alike(name):
    images = np.repeat(smooth_images(1, 32), 6, axis=0)
    assert len({image.tobytes() for image in corrupted(name, images, 5)}) == 6


def test_brightness_raises_the_value_and_contrast_lowers_the_deviation():
    images = smooth_images(4, 32)
    value = images.max(-1).astype(float)
    for severity, amount in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True):
        expected = (value + 255 * amount).clip(0, 255)
        result = corrupted("brightness", images, severity).max(-1)
        np.testing.assert_allclose(result, expected, atol=0.51)
    for severity, factor in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        result = corrupted("contrast", images, severity)
        np.testing.assert_allclose(result.std((1, 2)), factor * images.std((1, 2)), atol=0.3)
        np.testing.assert_allclose(result.mean((1, 2)), images.mean((1, 2)), atol=0.3)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "glass_blur"])
def test_blur_keeps_flat_images_and_averages_others(name):
    flat = np.full((2, 32, 32, 3), 77, np.uint8)
    images = smooth_images(8, 32)
    noisy = corrupted("gaussian_noise", images, 5)
    deviations = [noisy.std()]
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupted(name, flat, severity), flat)
        blurred = corrupted(name, noisy, severity)
        assert blurred.mean() == pytest.approx(noisy.mean(), abs=1)
        deviations.append(blurred.std())
    if name == "glass_blur":  # which above all exchanges pixels
        assert max(deviations) <= noisy.std() + 1
    else:
        assert (np.diff(deviations) < 0.1).all() and deviations[-1] < 0.85 * deviations[0]


def test_zoom_keeps_the_center_and_flat_images():
    image = np.zeros((1, 33, 33, 1), np.uint8)
    image[0, 16, 16] = 255
    blurred = corrupted("zoom_blur", image, 5)[0, ..., 0].astype(int)
    np.testing.assert_array_equal(blurred, blurred.T)
    assert blurred.argmax() == 16 * 33 + 16
    flat = np.full((1, 32, 32, 3), 200, np.uint8)
    np.testing.assert_array_equal(corrupted("zoom_blur", flat, 5), flat)


def test_motion_blur_is_a_line_from_the_pixel():
    import corruption_filters as filters

    image = np.zeros((2, 9, 9, 1), np.float32)
    image[:, 4, 4] = 1
    level, steep = filters.motion_blur(image, 2, 1e6, np.array([0, -np.pi / 2]))[..., 0]
    expected = np.zeros((9, 9))
    expected[4, :5] = 0.2
    np.testing.assert_allclose(level, expected, atol=1e-6)
    np.testing.assert_allclose(steep, expected[::-1].T[::-1], atol=1e-6)


def test_noise_has_the_moments_of_its_distribution():
    gray = np.full((40, 32, 32, 3), 128, np.uint8)
    x = 128 / 255
    for name, deviation in {
        "gaussian_noise": 0.10,
        "shot_noise": np.sqrt(x / 50),
        "speckle_noise": 0.2 * x,
    }.items():
        noise = corrupted(name, gray, 5) / 255 - x
        assert noise.std() == pytest.approx(deviation, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=1e-3)
    salted = corrupted("impulse_noise", gray, 5)
    assert [(salted == v).mean() for v in (0, 255)] == pytest.approx([0.035] * 2, rel=0.05)
    assert set(np.unique(salted)) == {0, 128, 255}


def test_pixels_become_fewer_and_jpeg_is_pillows():
    images = smooth_images(2, 32)
    for severity, side in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        for image in corrupted("pixelate", images, severity):
            assert len(np.unique(image, axis=0)) == len(np.unique(image, axis=1)[0]) == side
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        content = io.BytesIO()
        Image.fromarray(images[1]).save(content, "JPEG", quality=quality)
        result = corrupted("jpeg_compression", images, severity)
        np.testing.assert_array_equal(result[1], Image.open(content))


def test_saturation_changes_as_in_hsv():
    images = smooth_images(2, 32)
    for severity, (factor, offset) in enumerate(CORRUPTIONS["saturate"].small, 1):
        for image, result in zip(images, corrupted("saturate", images, severity), strict=True):
            before, after = (
                1 - x.min(-1) / np.maximum(x.max(-1), 1e-6) for x in (image / 255, result / 255)
            )
            np.testing.assert_allclose(after, (factor * before + offset).clip(0, 1), atol=0.03)
            np.testing.assert_array_equal(result.max(-1), image.max(-1))


def fake_logits(images):
    pixels = images.reshape(len(images), -1)[:, :10]
    return pixels[:, None].astype(np.float32) / 64


@pytest.fixture(scope="module")
def split():
    return Split(smooth_images(20, 8), np.arange(20, dtype=np.int32) % 10)


def test_files_are_read_by_the_evaluation_and_do_not_depend_on_the_others(tmp_path, split, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    corrupt.corrupt(split, list(CORRUPTIONS), whole, seed=3)
    corrupt.corrupt(split, ["fog", "snow"], part, seed=3)
    assert "snow" in capsys.readouterr().err
    for name in ("fog", "snow", "labels"):
        assert (part / f"{name}.npy").read_bytes() == (whole / f"{name}.npy").read_bytes()
    results = score_corruptions(fake_logits, whole, (8, 8, 3), "logits")
    assert results.keys() == {*CORRUPTIONS, "mean"}
    brightness = np.load(whole / "brightness.npy").reshape(5, *split.images.shape)
    for severity, images in enumerate(brightness, 1):
        np.testing.assert_array_equal(images, corrupted("brightness", split.images, severity))
    assert {file.suffix for file in whole.iterdir()} == {".npy", ".json"}


def test_blocks_and_severities_are_drawn_independently(monkeypatch, split):
    monkeypatch.setattr(corrupt, "_BLOCK", 8)
    gray = np.full_like(split.images, 128)
    blocks = list(corrupt.corrupted_blocks("impulse_noise", gray, seed=0))
    assert [len(block) for block in blocks] == 5 * [8, 8, 4]
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_what_is_complete_is_not_made_again_and_what_is_not_is(tmp_path, monkeypatch, split):
    corrupt.corrupt(split, ["fog"], tmp_path, seed=0)
    made = []

    def interrupted_blocks(name, images, seed):
        made.append(name)
        yield images
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corrupt, "corrupted_blocks", interrupted_blocks)
        with pytest.raises(KeyboardInterrupt):
            corrupt.corrupt(split, ["fog", "contrast", "snow"], tmp_path, seed=0)
    assert made == ["contrast"]
    assert {f.name for f in tmp_path.iterdir()} == {"corrupt.json", "fog.npy", "labels.npy"}
    (tmp_path / "fog.npy").write_bytes((tmp_path / "labels.npy").read_bytes())  # of another shape
    corrupt.corrupt(split, ["fog", "contrast"], tmp_path, seed=0)
    for name in ("fog", "contrast"):
        assert np.load(tmp_path / f"{name}.npy").shape == (100, 8, 8, 3)


@pytest.mark.parametrize(
    "facts, message",
    [
        (None, "has images from elsewhere; choose another folder"),
        ({"seed": 1}, "has images of seed=1, not 0; choose another folder"),
        ({"test_digest": "x"}, "has images of test_digest=x, not "),
    ],
)
def test_other_images_are_left_alone(tmp_path, split, facts, message):
    corrupt.corrupt(split, ["fog"], tmp_path, seed=0)
    file = tmp_path / corrupt.FACTS
    if facts is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    before = (tmp_path / "fog.npy").read_bytes()
    with pytest.raises(InputError, match=message):
        corrupt.corrupt(split, ["fog", "snow"], tmp_path, seed=0)
    assert (tmp_path / "fog.npy").read_bytes() == before
    assert not (tmp_path / "snow.npy").exists()


def test_names_of_corruptions():
    assert corrupt.parse_names(None, 3) == list(CORRUPTIONS)
    assert corrupt.parse_names(None, 1) == [name for name in CORRUPTIONS if name != "saturate"]
    assert corrupt.parse_names("snow,fog,snow", 1) == ["snow", "fog"]
    for text, message in {
        "fogg": "fogg: no such corruption; did you mean fog?",
        "": ": no such corruption; see --help",
        "fog,saturate": "corruptions='saturate': expected others: it needs images of three",
    }.items():
        with pytest.raises(InputError) as error:
            corrupt.parse_names(text, 1)
        assert message in str(error.value)


def test_command_line_writes_digits(tmp_path, monkeypatch):
    flags = [
        f"--output={tmp_path / 'c'}",
        "--corruptions=fog",
        "--config.dataset.test_fraction=0.1",
    ]
    monkeypatch.setattr(sys, "argv", ["corrupt.py", *flags])
    corrupt.main()
    assert np.load(tmp_path / "c" / "fog.npy").shape[1:] == (8, 8, 1)
    monkeypatch.setattr(sys, "argv", ["corrupt.py", *flags, "--severity=3"])
    with pytest.raises(InputError, match="severity"):
        corrupt.main()


def test_gallery_has_every_severity_of_every_corruption():
    figure = corruption_gallery.draw_gallery(smooth_images(1, 8))
    assert len(figure.axes) == len(CORRUPTIONS) * 6
