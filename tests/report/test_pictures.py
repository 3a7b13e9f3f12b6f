import base64
import struct
import zlib

import numpy as np
import pytest

from fptq.report.pictures import Slicing, png, slices


def pixels(text: str) -> np.ndarray:
    data = base64.b64decode(text)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (depth, data[-8:-4]) == (8, b"IEND")
    start = data.index(b"IDAT")
    raw = zlib.decompress(data[start + 4 : start + 4 + struct.unpack(">I", data[start - 4 : start])[0]])
    channels = {0: 1, 6: 4}[colour]
    return np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 4)])
def test_a_png_holds_its_pixels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(pixels(png(image)).reshape(shape), image)


def test_slices_stand_upright_and_show_where_masks_differ():
    image, first = np.zeros((6, 8, 10)), np.zeros((6, 8, 10), int)
    image[:, :, 9] = 100  # bright on top
    first[2:4, 3:6, 4:7] = 1
    second = first.copy()
    second[3, 5, 6] = 0
    sagittal, coronal, axial = slices(image, {"float": first, "int8": second, "label": first}, Slicing(case="a"))
    assert [p.title for p in sagittal.panels] == ["image", "float", "int8", "label", "difference"]
    assert sagittal.title == "a, sagittal slice 3"
    assert coronal.title == "a, coronal slice 5"
    assert coronal.note == "where the two masks differ most"
    shown = pixels(sagittal.panels[0].image)[..., 0]
    assert shown.shape == (10, 8)
    assert (shown[0] == 255).all()
    assert (shown[1:] == 0).all()
    overlay = pixels(axial.panels[-1].overlay)
    assert np.argwhere(overlay[..., 3]).tolist() == [[8 - 1 - 5, 3]]
    assert axial.panels[-1].note == "1 of 48 pixels differ"


def test_pixels_are_square_whatever_the_voxels():
    mask = np.ones((4, 4, 2), int)
    mask[0] = 2
    pictures = slices(mask * 1.0, {"float": mask, "int8": mask}, Slicing(case="a", spacing=(1, 1, 3)))
    assert [pixels(p.panels[0].image).shape[:2] for p in pictures] == [(6, 4), (6, 4), (4, 4)]
    assert pictures[0].panels[-1].note == "identical in this slice"
    assert pictures[0].note == "the two masks are identical everywhere"


def test_images_of_two_axes_constant_images_and_nan():
    mask = np.eye(4, dtype=int)
    (picture,) = slices(np.full((4, 4), np.nan), {"float": mask, "int8": mask}, Slicing(case="a", window=(0, 1)))
    assert (pixels(picture.panels[0].image) == 0).all()
    (flat,) = slices(np.ones((4, 4)), {"float": mask, "int8": mask}, Slicing(case="a"))
    assert flat.title == "a"


def test_masks_that_do_not_fit_are_refused():
    image, mask = np.zeros((4, 4)), np.zeros((4, 5), int)
    with pytest.raises(ValueError, match="not of the image's shape"):
        slices(image, {"float": mask, "int8": mask}, Slicing(case="a"))
    with pytest.raises(ValueError, match="two masks"):
        slices(image, {"float": image}, Slicing(case="a"))
