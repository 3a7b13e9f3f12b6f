"""What `quantize` wrote, run on new data."""

from __future__ import annotations

import nibabel
import numpy as np
import onnx_ir as ir
import pytest

import fptq
from fptq.errors import ConfigError, DataError, MissingExtra, OutputError
from fptq.feeds import PreprocessSpec, read_scan
from fptq.recipes import predict
from fptq.tasks import Case, SegmentationTask, VolumeInput

OPTIONS = {"engine": "onnxruntime", "threads": 1, "gate": "off", "observer": "minmax"}
SIDE = 8
LPS_LIKE = np.array([[0, 0, -1.5, 20], [-1, 0, 0, 30], [0, 2, 0, -40], [0, 0, 0, 1.0]])
"""An affine whose axes run to the back, upwards and to the left."""


def volumes(folder, count=3, *, shape=(SIDE,) * 3, affine=LPS_LIKE, suffix=".nii.gz"):
    """NIfTI files of random intensities."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = nibabel.Nifti1Image(rng.normal(100, 20, shape).astype(np.float32), affine)
        image.header["cal_max"] = 200
        image.to_filename(folder / f"s{index}{suffix}")
    return folder


@pytest.fixture
def segmenter(net):
    """A network of fixed size with three classes in 3-D."""
    n = net((1, 1, SIDE, SIDE, SIDE))
    n.conv(1, 8, rank=3)
    n("Relu")
    n.conv(8, 3, rank=3, kernel=1)
    return n.model()


@pytest.fixture(scope="module")
def made():
    """Results that were made already."""
    return {}


@pytest.fixture
def segmented(segmenter, made, tmp_path):
    """A result for segmentation, preprocessed by a table."""
    if "segmented" not in made:
        made["segmented"] = fptq.quantize(
            segmenter.graph_model,
            calibration=volumes(tmp_path / "calib"),
            task="segmentation",
            preprocess={"window": (40, 160)},
            cache=tmp_path / "cache",
            **OPTIONS,
        )
    return made["segmented"]


@pytest.fixture
def plain(cnn, samples, made, tmp_path):
    """A result for arrays of a network that takes [1, 4, 16, 16]."""
    if "plain" not in made:
        made["plain"] = fptq.quantize(cnn.graph_model, calibration=samples, cache=tmp_path / "cache", **OPTIONS)
    return made["plain"]


@pytest.fixture
def out(segmented, tmp_path):
    """The folder of a result for segmentation."""
    return segmented.save(tmp_path / "out")


def arrays(path):
    with np.load(path) as loaded:
        return dict(loaded)


def test_a_scan_becomes_a_label_map_on_its_own_grid(out, tmp_path) -> None:
    scans = volumes(tmp_path / "new", 2, shape=(11, 9, 10))
    told = []
    made = predict(out, scans, output=tmp_path / "masks", progress=lambda *now: told.append(now))
    assert [path.relative_to(tmp_path).as_posix() for path in made] == ["masks/s0.nii.gz", "masks/s1.nii.gz"]
    ends = [now for now in told if now[2] == "prediction"]
    assert ends == [(0, 2, "prediction"), (1, 2, "prediction"), (2, 2, "prediction")]
    shares = [done / total for done, total, _ in told]
    assert shares == sorted(shares)
    assert len(told) == 3 + 2 * 8  # the windows of both
    scan, labels = nibabel.load(scans / "s1.nii.gz"), nibabel.load(made[1])
    assert labels.shape == scan.shape
    np.testing.assert_array_equal(labels.affine, scan.affine)
    assert labels.get_data_dtype() == np.uint8
    assert labels.header["cal_max"] == 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["s0.nii.gz", "s1.nii.gz"]


def test_the_labels_are_those_that_are_scored(out, segmented, segmenter, tmp_path) -> None:
    scans = volumes(tmp_path / "new", 1, shape=(11, 9, 10))
    (made,) = predict(out, scans, output=tmp_path / "masks")
    runner = segmented.session()
    scan = read_scan(scans / "s0.nii.gz")
    case = Case(name="s0", volume=scan.volume, affine=scan.affine)
    task = SegmentationTask(
        cases=[case], network=VolumeInput(info=segmenter.inputs[0]), preprocess=PreprocessSpec(window=(40, 160))
    )
    # Read like any scan, the file is in the orientation that volumes are segmented in.
    np.testing.assert_array_equal(read_scan(made).volume, task.segment(runner, case))
    assert len(np.unique(read_scan(made).volume)) > 1


def test_the_saved_preprocess_is_applied(out, tmp_path) -> None:
    scans = volumes(tmp_path / "new", 1)
    made = [
        predict(out, scans, output=tmp_path / name, task="generic", **options)[0]
        for name, options in {"saved": {}, "other": {"preprocess": {"window": (0, 1000)}}}.items()
    ]
    ((saved,), (other,)) = (arrays(path).values() for path in made)
    assert saved.shape == other.shape == (1, 3, SIDE, SIDE, SIDE)
    assert not np.allclose(saved, other, atol=0.01)


def test_a_preprocess_is_imported_by_its_name(plain, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_predicting.py").write_text("def doubled(volume, affine):\n    return volume * 2\n")
    monkeypatch.chdir(tmp_path)
    out, image = plain.save(tmp_path / "out"), np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    recipe = (out / "fptq.toml").read_text()
    (out / "fptq.toml").write_text(f'preprocess = "mine_predicting:doubled"\n{recipe}')
    np.save(tmp_path / "s.npy", image)
    (path,) = predict(out, "s.npy", output="o")
    for name, expected in plain.session()({"x": 2 * image[None]}).items():
        np.testing.assert_array_equal(arrays(path)[name], expected)
    (out / "fptq.toml").write_text(f'preprocess = "mine_gone:doubled"\n{recipe}')
    with pytest.raises(ConfigError, match="no module named 'mine_gone'"):
        predict(out, "s.npy", output="o", overwrite=True)


@pytest.mark.engine("openvino")
def test_the_engine_is_the_one_that_the_file_names(cnn, samples, tmp_path) -> None:
    result = fptq.quantize(
        cnn.graph_model, calibration=samples, cache=tmp_path / "cache", **(OPTIONS | {"engine": "openvino"})
    )
    out = result.save(tmp_path / "out")
    (path,) = predict(out, samples[:1], output=tmp_path / "o")
    for name, expected in result.session()(samples[0]).items():
        np.testing.assert_array_equal(arrays(path)[name], expected)


def test_windows_cover_arrays_larger_than_the_network(out, tmp_path) -> None:
    rng = np.random.default_rng(3)
    volume = rng.normal(100, 20, (12, 9, 8)).astype(np.float32)
    np.save(tmp_path / "large.npy", volume)
    np.save(tmp_path / "whole.npy", volume[:SIDE, :SIDE, :SIDE])
    large, whole = (predict(out, tmp_path / name, output=tmp_path / "o")[0] for name in ("large.npy", "whole.npy"))
    ((covered,), (exact,)) = (arrays(path).values() for path in (large, whole))
    assert covered.shape == (1, 3, 12, 9, 8)
    # The corner window alone reaches the corner.
    np.testing.assert_allclose(covered[..., 0, 0, 0], exact[..., 0, 0, 0], atol=1e-5)


def test_windows_carry_every_output(net, tmp_path) -> None:
    n = net((1, 1, 16, 16))
    n.conv(1, 8)
    middle = n("Relu")
    n.conv(8, 2, kernel=1)
    made = n.model()
    made.graph.outputs.append(middle)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 1, 16, 16)).astype(np.float32)} for _ in range(3)]
    result = fptq.quantize(made.graph_model, calibration=feeds, cache=tmp_path / "cache", **OPTIONS)
    result.save(tmp_path / "out")
    np.save(tmp_path / "x.npy", rng.standard_normal((20, 16)).astype(np.float32))
    (path,) = predict(tmp_path / "out", tmp_path / "x.npy", output=tmp_path / "o", task="segmentation")
    assert {name: array.shape for name, array in arrays(path).items()} == {
        n.last.name: (1, 2, 20, 16),
        middle.name: (1, 8, 20, 16),
    }


def test_arrays_become_outputs_by_name(plain, samples, tmp_path) -> None:
    out = plain.save(tmp_path / "out")
    for group in ("a", "b"):
        (tmp_path / "new" / group).mkdir(parents=True)
        np.savez(tmp_path / "new" / group / "s.npz", x=np.concatenate([samples[0]["x"], samples[1]["x"]]))
    made = predict(out, str(tmp_path / "new" / "*" / "*.npz"), output=tmp_path / "o")
    assert [path.relative_to(tmp_path).as_posix() for path in made] == ["o/a/s.npz", "o/b/s.npz"]
    session = plain.session()
    expected = [session(feeds) for feeds in samples[:2]]
    found = arrays(made[0])
    assert found.keys() == expected[0].keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, np.concatenate([outputs[name] for outputs in expected]))


def test_samples_without_names_are_counted(plain, samples, tmp_path) -> None:
    made = predict(plain.save(tmp_path / "out"), iter(samples[:2]), output=tmp_path / "o")
    assert [path.name for path in made] == ["sample_0.npz", "sample_1.npz"]


def test_a_result_is_replaced_only_when_asked(plain, samples, tmp_path) -> None:
    out = plain.save(tmp_path / "out")
    np.savez(tmp_path / "s.npz", **samples[0])
    (made,) = predict(out, tmp_path / "s.npz", output=tmp_path / "o")
    made.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"s\.npz exists.*--overwrite"):
        predict(out, tmp_path / "s.npz", output=tmp_path / "o")
    assert made.read_bytes() == b"mine"
    predict(out, tmp_path / "s.npz", output=tmp_path / "o", overwrite=True)
    assert arrays(made)


def test_a_sample_is_never_replaced(plain, samples, tmp_path) -> None:
    np.savez(tmp_path / "s.npz", **samples[0])
    with pytest.raises(OutputError, match="is a sample"):
        predict(plain.save(tmp_path / "out"), tmp_path / "s.npz", output=tmp_path, overwrite=True)


def test_two_samples_of_one_name_are_refused(plain, samples, tmp_path) -> None:
    (tmp_path / "new").mkdir()
    np.savez(tmp_path / "new" / "s.npz", **samples[0])
    np.save(tmp_path / "new" / "s.npy", samples[0]["x"])
    with pytest.raises(DataError, match="would both become"):
        predict(plain.save(tmp_path / "out"), tmp_path / "new", output=tmp_path / "o")


def test_a_sample_that_does_not_fit_leaves_nothing(plain, tmp_path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((1, 4, 15, 16), np.float32))
    with pytest.raises(DataError, match=r"s\.npy: input 'x' has shape \[1, 4, 15, 16\]"):
        predict(plain.save(tmp_path / "out"), tmp_path / "s.npy", output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_scans_are_not_cut_where_windows_cannot_slide(net, tmp_path) -> None:
    n = net((1, 1, SIDE, SIDE, SIDE))
    n.conv(1, 8, rank=3)
    n("Relu")
    n("GlobalAveragePool")
    model = n.model()
    scans = volumes(tmp_path / "calib")
    result = fptq.quantize(model.graph_model, calibration=scans, cache=tmp_path / "cache", **OPTIONS)
    with pytest.raises(DataError, match="has shape"):
        predict(result.save(tmp_path / "out"), volumes(tmp_path / "new", 1, shape=(9,) * 3), output=tmp_path / "o")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda out: (out / "model.onnx").unlink(), ConfigError, "has no model.onnx"),
        (lambda out: (out / "fptq.toml").unlink(), ConfigError, "no recipe"),
        (lambda out: tagged(out, "fptq.engine", None), ConfigError, "names no engine"),
        (lambda out: tagged(out, "fptq.engine", "abacus"), ConfigError, "'abacus' is not known"),
        (lambda out: tagged(out, "fptq.unsaved", "preprocess"), ConfigError, "--preprocess"),
    ],
)
def test_a_folder_that_is_not_one_is_refused(plain, samples, tmp_path, spoil, error, says) -> None:
    out = plain.save(tmp_path / "out")
    spoil(out)
    with pytest.raises(error, match=says):
        predict(out, samples, output=tmp_path / "o")


def tagged(out, key, value) -> None:
    """Change the metadata of a result's model."""
    model = ir.load(out / "model.onnx")
    model.metadata_props.pop(key, None)
    if value is not None:
        model.metadata_props[key] = value
    ir.save(model, out / "model.onnx")


def test_an_engine_that_is_not_installed_is_named(plain, samples, tmp_path, monkeypatch) -> None:
    out = plain.save(tmp_path / "out")
    monkeypatch.setattr("fptq.engines.onnxruntime.OnnxRuntime.version", lambda self: None)
    with pytest.raises(MissingExtra, match="onnxruntime is not installed"):
        predict(out, samples, output=tmp_path / "o")


def test_a_task_given_in_python_says_what_is_not_saved(segmenter, tmp_path, caplog) -> None:
    scan = read_scan(volumes(tmp_path / "calib") / "s0.nii.gz")
    spec = PreprocessSpec(window=(40, 160))
    task = SegmentationTask(
        cases=[Case(name="s0", volume=scan.volume, affine=scan.affine)],
        network=VolumeInput(info=segmenter.inputs[0]),
        preprocess=spec,
        postprocess=lambda mask: mask,
    )
    feeds = [{"x": spec(scan.volume, scan.affine)[None]}]
    result = fptq.quantize(segmenter.graph_model, calibration=feeds, task=task, cache=tmp_path / "cache", **OPTIONS)
    out = result.save(tmp_path / "out")
    asked = {"data": tmp_path / "calib", "output": tmp_path / "o", "task": "segmentation"}
    with pytest.raises(ConfigError, match="lacks its preprocess"):
        predict(out, **asked)
    assert len(predict(out, **asked, preprocess={"window": (40, 160)})) == 3
    assert "postprocess" in caplog.text
