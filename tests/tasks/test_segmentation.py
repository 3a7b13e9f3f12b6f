import math

import numpy as np
import pytest
from scipy import ndimage

from fptq.errors import ConfigError, DataError, ModelError
from fptq.feeds import PreprocessSpec
from fptq.graph.model import TensorInfo
from fptq.tasks import Case, SegmentationTask, VolumeInput


def network(*spatial, batch="n", **options):
    info = TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(batch, 1, *spatial))
    return VolumeInput(info=info, **options)


def ball(shape, centre, radius):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    centre = np.reshape(centre, (-1, *[1] * len(shape)))
    return np.square(grid - centre).sum(0) < radius**2


def head(name="head", shape=(20, 22, 24), affine=None, **fields):
    label = ball(shape, [n // 2 for n in shape], 6).astype(np.int32)
    volume = label + np.random.default_rng(0).normal(0, 0.01, shape)
    return Case(
        name=name, volume=volume.astype(np.float32), affine=np.eye(4) if affine is None else affine, label=label
    )


def thresholding(feeds):
    """A network of two channels whose logits say x > 0.5."""
    x = feeds["x"]
    return {"y": np.concatenate([0.5 - x, x - 0.5], axis=1)}


def eroding(feeds):
    """The same with a thinner mask."""
    x = np.stack([ndimage.grey_erosion(v[0], size=3)[None] for v in feeds["x"]])
    return thresholding({"x": x})


def test_a_perfect_network():
    task = SegmentationTask(cases=[head("a"), head("b")], network=network("d", "h", "w"))
    scores = task.evaluate(thresholding)
    assert [s.name for s in scores] == ["dice", "hd95", "surface_dice", "volume_difference"]
    assert scores.cases == ("a", "b")
    assert scores["dice"].cases == (1.0, 1.0)
    assert scores["hd95"].value == 0.0
    assert scores["hd95"].unit == "mm"
    assert not scores["hd95"].higher_is_better
    assert scores.notes


def test_two_networks_in_one_pass():
    task = SegmentationTask(cases=[head(affine=np.diag([2.0, 2, 2, 1]))], network=network("d", "h", "w"))
    done = []
    scores = task.evaluate_all({"float": thresholding, "int8": eroding}, progress=lambda *told: done.append(told[:2]))
    assert "agreement_dice" not in scores["float"]
    assert scores["int8"]["agreement_dice"].value == scores["int8"]["dice"].value < 0.9
    assert 2.0 <= scores["int8"]["hd95"].value <= 4.0
    assert done == [(1, 1)]


def test_unlabelled_volumes_give_agreement_only():
    case = head()
    task = SegmentationTask(cases=[Case(name="a", volume=case.volume)], network=network("d", "h", "w"))
    scores = task.evaluate_all({"float": thresholding, "int8": thresholding})
    assert scores["float"].entries == ()
    assert scores["int8"]["agreement_dice"].value == 1.0


def test_classes_and_the_policy_for_empty_ones():
    label = np.zeros((8, 8), np.int32)
    label[1:4, 1:4] = 1
    label[5:7, 5:7] = 2
    volume = label.astype(np.float32)

    def runner(feeds):  # finds class 1, misses class 2; class 3 is in neither
        x = feeds["x"]
        return {"y": np.concatenate([x * 0 + 0.5, x == 1, x * 0, x * 0], axis=1).astype(np.float32)}

    task = SegmentationTask(
        cases=[Case(name="a", volume=volume, label=label)],
        network=network("h", "w"),
        classes=("liver", "spleen", "eye"),
    )
    scores = task.evaluate(runner)
    assert scores["dice_liver"].value == 1.0
    assert scores["dice_spleen"].value == 0.0
    assert math.isnan(scores["dice_eye"].value)
    assert scores["dice"].value == 0.5
    assert math.isnan(scores["hd95_spleen"].value)
    assert scores["hd95"].value == 0.0
    assert scores["hd95"].unit == "voxel"
    assert "2 of 3 here" in scores.notes[1]


@pytest.mark.parametrize(
    ("squash", "threshold"), [(lambda x: 1 / (1 + np.exp(-x)), None), (lambda x: x, None), (lambda x: x + 9, 9)]
)
def test_one_channel_of_logits_or_probabilities(squash, threshold):
    def runner(feeds):
        return {"y": squash((feeds["x"] - 0.5) * 20)}

    task = SegmentationTask(cases=[head()], network=network("d", "h", "w"), threshold=threshold)
    assert task.evaluate(runner)["dice"].value == 1.0


@pytest.mark.parametrize("batch", [1, 3, "n"])
def test_a_volume_larger_than_the_network_is_covered_by_windows(batch):
    shapes = []

    def runner(feeds):
        shapes.append(feeds["x"].shape)
        return thresholding(feeds)

    task = SegmentationTask(cases=[head()], network=network(16, 16, 16, batch=batch), metrics=("dice",))
    assert task.evaluate(runner)["dice"].value == 1.0
    windows = 4 if batch == "n" else batch  # a row at once where the network takes any batch
    assert set(shapes) == {(windows, 1, 16, 16, 16)}
    assert len(shapes) * shapes[0][0] >= 8


def test_a_volume_smaller_than_the_network_is_padded():
    task = SegmentationTask(cases=[head()], network=network(32, 32, 32, batch=1), metrics=("dice",))
    assert task.evaluate(thresholding)["dice"].value == 1.0


def test_windows_of_a_free_size():
    covered = network("d", "h", "w", window=(16, 16, 16), overlap=0.25)
    assert SegmentationTask(cases=[head()], network=covered).evaluate(thresholding)["dice"].value == 1.0


def test_masks_come_back_to_the_grid_of_the_scan():
    spec = PreprocessSpec(orientation="LPS", spacing=(1.0, 1.0, 1.0), multiple_of=8)
    case = head(shape=(22, 20, 24), affine=np.diag([1.3, 0.9, 1.0, 1.0]))
    task = SegmentationTask(cases=[case], network=network("d", "h", "w"), preprocess=spec)
    assert task.segment(thresholding, case).shape == case.volume.shape
    assert task.evaluate(thresholding)["dice"].value > 0.95
    lost = SegmentationTask(cases=[case], network=network("d", "h", "w"), preprocess=lambda v, a: spec(v, a))
    with pytest.raises(ConfigError, match="invert"):
        lost.evaluate(thresholding)


def test_the_postprocess_is_scored():
    case = head()
    task = SegmentationTask(cases=[case], network=network("d", "h", "w"), postprocess=lambda mask: mask * 0)
    scores = task.evaluate(thresholding)
    assert scores["dice"].value == 0.0
    assert math.isnan(scores["hd95"].value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="no case"):
        SegmentationTask(cases=[], network=network("h", "w"))
    case = head()
    wrong = Case(name="a", volume=case.volume, label=case.label * 4)
    with pytest.raises(DataError, match="labels run from 0 to 4"):
        SegmentationTask(cases=[wrong], network=network("d", "h", "w")).evaluate(thresholding)
    with pytest.raises(ModelError, match="no output 'z'"):
        SegmentationTask(cases=[case], network=network("d", "h", "w", output="z")).evaluate(thresholding)
    with pytest.raises(ModelError, match="on the grid of its input"):
        SegmentationTask(cases=[case], network=network("d", "h", "w")).evaluate(lambda f: {"y": f["x"][:, :, ::2]})
    with pytest.raises(ModelError, match="the network takes"):
        SegmentationTask(cases=[case], network=network("h", "w")).evaluate(thresholding)
    with pytest.raises(ConfigError, match="window"):
        network("d", "h", "w", window=(16, 16))


def test_surfaces_and_volumes_in_millimetres_and_millilitres():
    task = SegmentationTask(cases=[head(affine=np.diag([2.0, 2, 2, 1]))], network=network("d", "h", "w"), tolerance=2.0)
    scores = task.evaluate(eroding)
    strict = SegmentationTask(cases=task.cases, network=task.network, tolerance=0.5).evaluate(eroding)
    assert strict["surface_dice"].value < scores["surface_dice"].value <= 1.0
    lost = scores["volume_difference"]
    assert (lost.unit, lost.higher_is_better) == ("ml", False)
    label = task.cases[0].label
    assert lost.value == (label.sum() - ndimage.binary_erosion(label, np.ones((3, 3, 3))).sum()) * 8 / 1000
    assert any("within 2 mm" in note for note in scores.notes)


def test_an_empty_label_is_left_out_or_counts_as_missed():
    """A case without the class: nothing predicted is left out, something predicted is wrong."""
    case = head()
    empty = Case(name="empty", volume=case.volume * 0, affine=case.affine, label=case.label * 0)
    false = Case(name="false", volume=case.volume, affine=case.affine, label=case.label * 0)
    scores = SegmentationTask(cases=[case, empty, false], network=network("d", "h", "w")).evaluate(thresholding)
    assert str(scores["dice"].cases) == "(1.0, nan, 0.0)"
    assert str(scores["surface_dice"].cases) == "(1.0, nan, 0.0)"
    assert str(scores["hd95"].cases) == "(0.0, nan, nan)"
    assert scores["dice"].value == 0.5
    assert scores["volume_difference"].cases[:2] == (0.0, 0.0)
    assert scores["volume_difference"].cases[2] == case.label.sum() / 1000
    assert any(note.startswith("Dice") and "1 of 3 here" in note for note in scores.notes)


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "SAL"])
def test_masks_decided_window_by_window_are_those_of_the_whole_outputs(orientation, monkeypatch):
    """Where voxels are kept classes are decided early; spelled out, the outputs are brought back first."""
    spec = PreprocessSpec(orientation=orientation, size=(26, 18, 24))
    case = head(shape=(22, 20, 24), affine=np.diag([1.3, 0.9, 1.0, 1.0]))
    covered = network(16, 16, 16, batch=2)
    assert spec.keeps_voxels(case.volume, case.affine)
    early = SegmentationTask(cases=[case], network=covered, preprocess=spec).segment(thresholding, case)
    monkeypatch.setattr(PreprocessSpec, "keeps_voxels", lambda *_: False)
    late = SegmentationTask(cases=[case], network=covered, preprocess=spec).segment(thresholding, case)
    np.testing.assert_array_equal(early, late)
    assert early.sum() > 100


@pytest.mark.parametrize("single", [False, True])
def test_channels_decided_one_by_one_are_those_of_the_whole_outputs(single):
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0))
    case = head(shape=(22, 20, 24), affine=np.diag([1.3, 0.9, 1.0, 1.0]))

    def three(feeds):
        x = feeds["x"]
        return {"y": np.concatenate([0.5 - x, x - 0.5, x - 0.6 + (x > 0.9)], axis=1)}

    def one(feeds):
        return {"y": feeds["x"] * 2 - 1}

    runner = one if single else three
    outputs = network(16, 16, 16).run(runner, spec(case.volume, case.affine))
    whole = spec.invert(outputs, case.volume, case.affine)
    expected = whole[0] > 0 if single else whole.argmax(0)
    task = SegmentationTask(cases=[case], network=network(16, 16, 16), preprocess=spec)
    np.testing.assert_array_equal(task.segment(runner, case), expected)
    assert expected.any()


def test_more_classes_than_a_mask_has_are_refused():
    case = Case(name="a", volume=np.zeros((4, 4), np.float32))
    task = SegmentationTask(cases=[case], network=network("h", "w"))
    with pytest.raises(ModelError, match="at most 256 classes"):
        task.segment(lambda feeds: {"y": np.zeros((1, 257, 4, 4), np.float32)}, case)


@pytest.mark.parametrize(("asked", "expected"), [(None, 2**20 // 16**3), (3, 3)])
def test_windows_of_one_call_fit_the_memory(asked, expected):
    sizes = []

    def runner(feeds):
        sizes.append(len(feeds["x"]))
        return thresholding(feeds)

    case = Case(name="a", volume=np.zeros((16, 16 * 30, 16 * 12), np.float32))
    task = SegmentationTask(cases=[case], network=network(16, 16, 16, overlap=0.0, windows_per_call=asked))
    task.segment(runner, case)
    assert max(sizes) == expected
    assert sum(sizes) == 30 * 12
