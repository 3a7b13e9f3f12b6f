import numpy as np
import PIL.Image
import pytest
import torch

from fptq.errors import ConfigError, DataError, MissingExtra
from fptq.feeds import ImageSpec, PreprocessSpec, find_samples, image_array, open_feeds, read_image
from fptq.feeds.folders import spread_samples
from fptq.feeds.images import IMAGENET_MEAN, IMAGENET_STD
from fptq.graph.model import TensorInfo

GENERATOR = np.random.default_rng(0)
RGB = GENERATOR.integers(0, 256, (20, 30, 3), dtype=np.uint8)
PLAIN = ImageSpec(mean=(0.0,), std=(1.0,))


def inputs(*shape, dtype=np.float32):
    return (TensorInfo(name="x", dtype=np.dtype(dtype), shape=shape),)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)).save(path, **options)
    return path


def array(path, *shape, spec=None, dtype=np.float32):
    return image_array(read_image(path), inputs(*shape, dtype=dtype), preprocess=spec)


def test_the_default_is_the_usual_preparation_for_imagenet(tmp_path):
    path = save(tmp_path / "a.png", GENERATOR.integers(0, 256, (60, 91, 3), dtype=np.uint8))
    found = array(path, 1, 3, 28, 28)
    resized = PIL.Image.open(path).resize((int(32 * 91 / 60), 32), PIL.Image.Resampling.BILINEAR)
    left, top = round((48 - 28) / 2), round((32 - 28) / 2)
    crop = torch.from_numpy(np.array(resized.crop((left, top, left + 28, top + 28)))).permute(2, 0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = crop.to(torch.float32).div(255).sub(mean).div(std)  # as ToTensor and Normalize compute
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (None, None, None, None)])
def test_a_network_of_any_size_gets_224(tmp_path, shape):
    assert array(save(tmp_path / "a.png", RGB), *shape).shape == (3, 224, 224)


def test_channels_may_be_the_last_axis(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    last, first = array(path, None, 20, 16, 3), array(path, None, 3, 20, 16)
    np.testing.assert_array_equal(last, first.transpose(1, 2, 0))
    (feeds,) = open_feeds(path, inputs(None, None, None, 3), preprocess=ImageSpec(image_size=(8, 9)))
    assert feeds["x"].shape == (1, 8, 9, 3)


def test_settings(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    whole = ImageSpec(image_size=20, image_resize=20, mean=(1, 2, 3), std=(2.0,), scale=127.5)
    expected = (RGB[:, 5:25].astype(np.float32) / np.float32(127.5) - np.float32([1, 2, 3])) / np.float32(2)
    np.testing.assert_array_equal(array(path, 1, 3, "h", "w", spec=whole), expected.transpose(2, 0, 1))
    raw = array(path, 1, 3, 20, 20, spec=ImageSpec(image_resize=20, scale=1))
    np.testing.assert_array_equal(raw, RGB[:, 5:25].transpose(2, 0, 1))
    np.testing.assert_array_equal(
        array(path, 1, 20, 20, 3, spec=ImageSpec(image_resize=20), dtype=np.uint8), RGB[:, 5:25]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mean": (0.5,)}, "mean and std"),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, "mean has 2 numbers"),
        ({"mean": (0.5,), "std": (0.0,)}, "not positive"),
        ({"scale": -1}, "not positive"),
        ({"image_size": 0}, "not positive"),
        ({"image_size": (8, 16), "image_resize": 12}, "smaller than image_size"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        ImageSpec(**settings)


def test_settings_that_do_not_fit_the_network(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    for spec, shape, says in (
        (ImageSpec(image_size=16), (1, 3, 8, 8), "image_size 16"),
        (ImageSpec(image_resize=7), (1, 3, 8, 8), "image_resize 7"),
        (None, (1, 1, 8, 8), "mean = \\[0.5\\]"),
        (ImageSpec(mean=(1, 1, 1), std=(1, 1, 1)), (1, 1, 8, 8), "the network takes"),
        (PreprocessSpec(size=(1, 1, 1)), (1, 3, 8, 8), "Images have image_size"),
    ):
        with pytest.raises(ConfigError, match=says):
            array(path, *shape, spec=spec)
    with pytest.raises(ConfigError, match="takes the pixels"):
        array(path, 1, 3, 8, 8, spec=PLAIN, dtype=np.uint8)
    for shape in ((1, 4, 8, 8), (1, 3, 8)):
        with pytest.raises(DataError, match="is an image"):
            array(path, *shape)
    with pytest.raises(DataError, match="is an image"):
        image_array(read_image(path), inputs(1, 3, 8, 8) * 2, preprocess=None)
    with pytest.raises(DataError, match="for image files"):
        next(iter(open_feeds([np.zeros((1, 3, 8, 8), np.float32)], inputs(1, 3, 8, 8), preprocess=PLAIN)))


def test_a_function_sees_the_whole_image(tmp_path):
    save(tmp_path / "a.png", RGB)
    seen = []

    def own(pixels, affine):
        seen.append((pixels, affine))
        return pixels[:8, :8].transpose(2, 0, 1).astype(np.float32)

    (feeds,) = open_feeds(tmp_path, inputs(1, 3, 8, 8), preprocess=own)
    np.testing.assert_array_equal(seen[0][0], RGB)
    np.testing.assert_array_equal(feeds["x"][0], RGB[:8, :8].transpose(2, 0, 1))


LUMA = np.asarray(PIL.Image.fromarray(RGB).convert("L"))
TRIPLE = np.stack([LUMA] * 3, -1)


@pytest.mark.parametrize(
    ("mode", "rgb", "luma"),
    [("RGB", RGB, LUMA), ("RGBA", RGB, LUMA), ("L", TRIPLE, LUMA), ("LA", TRIPLE, LUMA), ("I;16", TRIPLE, LUMA)],
)
def test_images_of_any_kind_are_converted(tmp_path, mode, rgb, luma):
    image = LUMA.astype(np.uint16) * 257 if mode == "I;16" else PIL.Image.fromarray(RGB).convert(mode)
    read = read_image(save(tmp_path / "a.png", image))
    assert read.picture.mode == mode
    np.testing.assert_array_equal(read.pixels(3), rgb)
    np.testing.assert_array_equal(read.pixels(1), luma)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_images_of_few_colours_are_converted(tmp_path, mode):
    read = read_image(save(tmp_path / "a.png", PIL.Image.fromarray(RGB).convert(mode)))
    assert read.pixels(3).shape == RGB.shape
    assert read.pixels(1).shape == LUMA.shape


def test_cmyk_and_the_orientation_of_cameras(tmp_path):
    path = save(tmp_path / "a.jpg", PIL.Image.new("CMYK", (30, 20), (0, 255, 255, 0)))
    assert read_image(path).pixels(3)[0, 0].tolist()[0] > 200
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = save(tmp_path / "b.png", PIL.Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_image(turned).pixels(3), np.rot90(RGB, -1))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "PNG", "bmp", "webp"])
def test_files_of_every_kind(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", PIL.Image.fromarray(RGB))
    (feeds,) = open_feeds(tmp_path, inputs(1, 3, 8, 8))
    assert feeds["x"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kept", [0, 60])
def test_a_corrupt_image_is_named(tmp_path, kept):
    path = save(tmp_path / "a.jpg", RGB)
    path.write_bytes(path.read_bytes()[:-kept] if kept else b"no image")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        list(open_feeds(tmp_path, inputs(1, 3, 8, 8)))


def test_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png", RGB)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"fptq\[images\]"):
        list(open_feeds(tmp_path, inputs(1, 3, 8, 8)))


def classes(folder, **counts):
    for name, count in counts.items():
        for index in range(count):
            save(folder / name / f"{index}.png", RGB[:2, :2])


def short(paths):
    return [f"{path.parent.name}{path.stem}" for path in paths]


def test_class_folders_are_read_class_by_class(tmp_path):
    classes(tmp_path, b=11, a=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.txt").touch()
    assert short(find_samples(tmp_path)) == ["a0", *(f"b{i}" for i in range(11))]
    assert short(find_samples(f"{tmp_path}/*/*.png")) == short(find_samples(tmp_path))
    assert short(find_samples(tmp_path / "a")) == [f"a{0}"]


def test_a_spread_sees_many_classes_and_every_image(tmp_path):
    classes(tmp_path, a=3, b=1, c=2, d=3)
    everything = short(find_samples(tmp_path))
    for source in (tmp_path, f"{tmp_path}/*/*.png"):
        found = short(spread_samples(source, seed=0))
        assert sorted(found) == everything
        assert {name[0] for name in found[:4]} == set("abcd")
        assert {name[0] for name in found[4:7]} == set("acd")
        assert found == short(spread_samples(source, seed=0))
        assert found[:3] == short(spread_samples(source, seed=0, limit=3))
        assert found[:6] == short(spread_samples(source, seed=0, limit=6))
    assert any(found != short(spread_samples(tmp_path, seed=seed)) for seed in (1, 2))
    assert short(spread_samples(tmp_path / "a", seed=3)) == ["a0", "a1", "a2"]


def test_a_limit_looks_into_no_more_folders_than_needed(tmp_path, monkeypatch):
    classes(tmp_path, a=1, b=1, c=1)
    looked = []
    monkeypatch.setattr("fptq.feeds.folders.images_in", lambda folder: looked.append(folder) or (folder / "0.png",))
    assert len(spread_samples(tmp_path, seed=0, limit=2)) == len(looked) == 2


def test_samples_of_two_kinds_are_refused(tmp_path):
    save(tmp_path / "a.png", RGB)
    np.save(tmp_path / "a.npy", RGB)
    with pytest.raises(DataError, match=r"both images \(a.png\) and arrays \(a.npy\)"):
        find_samples(tmp_path)
    (tmp_path / "a.npy").unlink()
    classes(tmp_path, b=1)
    with pytest.raises(DataError, match="beside folders of images"):
        find_samples(tmp_path)


def test_folders_of_arrays_are_read_as_before(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 8), np.float32))
    classes(tmp_path, previews=1)
    assert short(find_samples(tmp_path)) == [f"{tmp_path.name}a"]
    assert short(spread_samples(tmp_path, seed=0)) == [f"{tmp_path.name}a"]
