import json
import math

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fptq
from fptq.errors import ConfigError, DataError, EngineError, ModelError
from fptq.feeds import ImageSpec
from fptq.graph.model import TensorInfo
from fptq.recipes import predict
from fptq.recipes.problem import open_problem
from fptq.tasks import ClassificationTask, LabelledImages, open_labelled, paired_drop
from fptq.tasks.fingerprint import fingerprint

SIDE = 8
# A class is a colour; the network below answers with the largest of six mixtures of the channels.
COLOURS = {"blue": (0, 0, 255), "cyan": (0, 255, 255), "green": (0, 255, 0), "lilac": (255, 0, 255)}
COLOURS |= {"red": (255, 0, 0), "yellow": (255, 255, 0)}
MIX = np.array([[2 * (c > 0) - 1 for c in colour] for colour in COLOURS.values()], np.float32)
RAW = ImageSpec(image_resize=SIDE, mean=(0.5,), std=(0.5,))


def save(path, colour, size=(SIDE, SIDE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)


def folder(path, names=tuple(COLOURS), count=2):
    for name in names:
        for index in range(count):
            save(path / name / f"{index}.png", COLOURS.get(name, (0, 0, 0)))
    return path


def inputs(batch="n", side=SIDE):
    return (TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(batch, 3, side, side)),)


def colours(feeds):
    return {"y": (feeds["x"].mean((2, 3)) @ MIX.T).astype(np.float32)}


def red_is_yellow(feeds):
    logits = colours(feeds)["y"]
    logits[:, 5] += 4
    return {"y": logits}


def task(images, batch="n", **options):
    return ClassificationTask(images=images, inputs=inputs(batch), preprocess=RAW, **options)


@pytest.fixture
def images(tmp_path):
    return open_labelled(folder(tmp_path / "val"), count=6)


def test_a_perfect_network(images):
    scores = task(images).evaluate(colours)
    assert [(score.name, score.value) for score in scores] == [("top1", 1.0), ("top5", 1.0)]
    assert scores.cases[:3] == ("blue/0.png", "blue/1.png", "cyan/0.png")
    assert scores["top1"].cases == (1.0,) * 12
    assert "sorted names" in scores.notes[-1]


def test_two_networks_in_one_pass(images):
    done = []
    scores = task(images).evaluate_all(
        {"float": colours, "int8": red_is_yellow}, progress=lambda *told: done.append(told[:2])
    )
    assert "agreement_top1" not in scores["float"]
    assert 0 < scores["int8"]["agreement_top1"].value == scores["int8"]["top1"].value < 1
    assert scores["int8"]["top5"].value == 1.0
    assert done[0] == (0, 12)
    assert done[-1] == (12, 12)
    drop = paired_drop(scores["float"]["top1"], scores["int8"]["top1"])
    assert drop.cases == 12
    assert 0 < drop.low <= drop.value <= drop.high
    assert drop.value == pytest.approx(1 - scores["int8"]["top1"].value)


def fixed(values):
    return lambda feeds: {"y": np.repeat(np.float32([values]), len(feeds["x"]), axis=0)}


def test_places(images):
    one = LabelledImages(paths=images.paths[:1], labels=(1,))
    for values, top1, top5 in (
        ([0, 1, 0, 0, 0, 0], 1, 1),
        ([1, 1, 0, 0, 0, 0], 0, 1),  # of equal outputs the first counts
        ([0, 1, 1, 0, 0, 0], 1, 1),
        ([5, 0, 5, 5, 5, 5], 0, 0),
        ([0, math.nan, 0, 0, 0, 0], 0, 0),
    ):
        scores = task(one).evaluate(fixed(values))
        assert (scores["top1"].value, scores["top5"].value) == (top1, top5)
    assert "top5" not in task(one).evaluate(fixed([0, 1, 0, 0, 0]))


def test_likelihood_of_logits_and_probabilities(images):
    one = LabelledImages(paths=images.paths[:1], labels=(1,))
    measured = task(one, metrics=("nll",))
    for values, probability in (([0, math.log(3)], 0.75), ([0.25, 0.75], 0.75), ([1, 0], 1e-7), ([9, -90], 1e-7)):
        score = measured.evaluate(fixed(values))["nll"]
        assert score.value == pytest.approx(-math.log(probability), rel=1e-5)
        assert not score.higher_is_better


@pytest.mark.parametrize(("batch", "seen"), [("n", [12]), (1, [1] * 12), (5, [5, 5, 5])])
def test_batches(images, batch, seen):
    sizes = []

    def runner(feeds):
        sizes.append(len(feeds["x"]))
        return colours(feeds)

    assert task(images, batch).evaluate(runner)["top1"].cases == (1.0,) * 12
    assert sizes == seen


def test_batches_are_bounded(tmp_path):
    one = task(open_labelled(folder(tmp_path, count=4)))
    assert [len(batch) for batch in one._batches()] == [16, 8]
    large = ClassificationTask(images=one.images, inputs=inputs(side="s"), preprocess=ImageSpec(image_size=700))
    assert [len(batch) for batch in large._batches()] == [2] * 12


def test_a_batch_that_only_the_name_promises(images):
    def fails(feeds):
        if len(feeds["x"]) > 1:
            raise EngineError("Reshape")
        return colours(feeds)

    def shrinks(feeds):
        return {"y": colours(feeds)["y"][:1]}

    for runner in (fails, shrinks):
        assert task(images).evaluate(runner)["top1"].value == 1.0


def test_outputs_of_other_shapes(images):
    assert task(images).evaluate(lambda f: {"y": colours(f)["y"][:, :, None, None]})["top1"].value == 1.0
    several = task(images, output="y")
    assert several.evaluate(lambda f: {"z": f["x"], **colours(f)})["top1"].value == 1.0
    for runner, says in ((lambda f: {"y": f["x"]}, r"\[N, K\]"), (lambda f: {"z": f["x"]}, "no output 'y'")):
        with pytest.raises(ModelError, match=says):
            several.evaluate(runner)
    with pytest.raises(DataError, match=r"class [45] .*the network has 4 classes"):
        task(images).evaluate(lambda f: {"y": colours(f)["y"][:, :4]})
    with pytest.raises(ModelError, match="takes one image"):
        ClassificationTask(images=images, inputs=inputs() * 2)


def labels(found):
    return {path.parent.name: label for path, label in zip(found.paths, found.labels, strict=True)}


def test_folders_are_classes_in_sorted_order(tmp_path):
    found = open_labelled(folder(tmp_path, ("b", "a", "a10", "a9")), count=4)
    assert labels(found) == {"a": 0, "a10": 1, "a9": 2, "b": 3}
    assert labels(open_labelled(f"{tmp_path}/*/*.png")) == labels(found)
    assert fingerprint(task(found)) == fingerprint(task(open_labelled(tmp_path, count=4)))


def test_numbers_are_class_indices(tmp_path):
    found = open_labelled(folder(tmp_path, ("2", "10", "0007")), count=11)
    assert labels(found) == {"2": 2, "10": 10, "0007": 7}
    assert "numbered" in found.note
    with pytest.raises(DataError, match=r"the class is 10\. .*0 to 9"):
        open_labelled(tmp_path, count=10)
    folder(tmp_path, ("02",))
    with pytest.raises(DataError, match="two folders of one number"):
        open_labelled(tmp_path, count=11)


WNIDS = ("n00000001", "n00000002", "n00000003")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "n00000001\nn00000002\nn00000003\n"),
        ("a.txt", "n00000001 tench, Tinca tinca\nn00000002 crane\nn00000003: crane\n"),
        ("a.json", json.dumps(WNIDS)),
        ("a.json", json.dumps({"0": ["n00000001", "tench"], "1": ["n00000002", "crane"], "2": ["n00000003", "crane"]})),
        ("a.json", json.dumps({"n00000003": 2, "n00000001": 0, "n00000002": 1})),
        ("train", None),
    ],
)
def test_a_subset_of_the_named_classes(tmp_path, name, text):
    if text is None:
        folder(tmp_path / name, WNIDS, count=1)
    else:
        (tmp_path / name).write_text(text)
    found = open_labelled(folder(tmp_path / "val", WNIDS[1:]), tmp_path / name, count=3)
    assert labels(found) == {"n00000002": 1, "n00000003": 2}


def test_names_that_do_not_fit_are_refused(tmp_path):
    names = tmp_path / "a.json"

    def refused(document, count=3):
        names.write_text(document if isinstance(document, str) else json.dumps(document))
        with pytest.raises(DataError) as caught:
            open_labelled(tmp_path / "val", names, count=count)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder(tmp_path / "val", ("cat", "crane"))
    assert "'cat' is not named" in refused(["dog", "crane", "cats"])
    assert "nearest one is 'cats'" in refused(["dog", "crane", "cats"])
    assert "'crane' stands for classes 0, 2" in refused(["crane", "cat", "crane"])
    assert "names 2 classes, and the network has 3. " in refused(["cat", "crane"])
    assert "background" in refused(["cat", "crane"])
    assert "cannot be read" in refused("no JSON")
    assert "cannot be read" in refused("3")
    assert "names no classes" in refused([])
    with pytest.raises(DataError, match="cannot be read"):
        open_labelled(tmp_path / "val", tmp_path / "none.txt")
    for count in (1, 3):
        with pytest.raises(DataError, match=f"2 class folders, and the network {count} classes.*--labels"):
            open_labelled(tmp_path / "val", count=count)


def test_folders_that_are_no_classes_are_refused(tmp_path):
    folder(tmp_path / "val", ("a", "b"))
    with pytest.raises(DataError, match="no class folders"):
        open_labelled(tmp_path / "val" / "a")
    (tmp_path / "val" / ".cache").mkdir()
    assert len(open_labelled(tmp_path / "val")) == 4
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(DataError, match=r"c holds no image\. .*--labels"):
        open_labelled(tmp_path / "val")
    np.save(tmp_path / "a.npy", np.zeros(1))
    with pytest.raises(DataError, match="is no image"):
        open_labelled(tmp_path / "a.npy")
    with pytest.raises(DataError, match="does not exist"):
        open_labelled(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image to classify"):
        LabelledImages(paths=(), labels=())


def network(path):
    """Conv, Relu, global mean, and the mixtures: six classes of colour."""
    generator = np.random.default_rng(0)
    weight = np.concatenate([np.eye(3), -np.eye(3), generator.normal(0, 0.05, (2, 3))]).astype(np.float32)
    head = np.concatenate([MIX, -MIX, np.zeros((6, 2))], axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "h"], ["y"], transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight[..., None, None], "w"), numpy_helper.from_array(head, "h")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


OPTIONS = {"engine": "onnxruntime", "threads": 1, "gate": "off", "recipe": "fast"}


def test_class_folders_in_and_top1_out(tmp_path):
    train, val = folder(tmp_path / "train", count=3), folder(tmp_path / "val")
    model = network(tmp_path / "model.onnx")
    result = fptq.quantize(
        model,
        calibration=train,
        validation=val,
        task="classification",
        samples=8,
        cache=tmp_path / "cache",
        **OPTIONS,
    )
    report = result.report
    assert report.float.scores["top1"].value == report.quantized.scores["top1"].value == 1.0
    assert report.agreement.scores["agreement_top1"].value == 1.0
    assert {drop.score: drop.cases for drop in report.drops} == {"top1": 12, "top5": 12}
    assert len(report.quantized.scores["top1"].per_case) == 12
    out = result.save(tmp_path / "out")
    assert fptq.load_recipe(out).task == "classification"
    (written,) = predict(out, val / "red" / "0.png", output=tmp_path / "answers")
    with np.load(written) as answers:
        assert answers["y"].argmax() == list(COLOURS).index("red")
    with pytest.raises(ConfigError, match="--val"):
        fptq.quantize(model, calibration=train, task="classification", **OPTIONS)
    (val / "red" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        predict(out, val / "red", output=tmp_path / "more")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_is_exported_with_an_image(tmp_path, channels):
    module = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 6)).eval()
    preprocess = {"image_size": SIDE, "mean": [0.5], "std": [0.5]}
    recipe = fptq.Recipe.of({"preprocess": preprocess, "samples": 6, "cache": tmp_path / "cache"})
    problem = open_problem(module, folder(tmp_path / "train"), recipe)
    assert problem.model.inputs[0].shape[1:] == (channels, SIDE, SIDE)
    # Six images of six classes: the one held out is of none of the others.
    (name,) = {name for feeds in problem.calibration for name in feeds}
    assert len({feeds[name].tobytes() for feeds in (*problem.calibration, *problem.held_out)}) == 6


def test_the_same_on_the_command_line(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fptq.cli import app

    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "train", count=1), folder(tmp_path / "val", ("red", "blue")), network(tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("\n".join(COLOURS))
    (tmp_path / "fptq.toml").write_text('gate = "off"\n[preprocess]\nimage_resize = 8\nmean = [0.5]\nstd = [0.5]\n')
    line = "quantize model.onnx --calib train --val val --task classification --samples 6 --config fptq.toml"
    options = "--engine onnxruntime --threads 1 --recipe fast -o out"
    refused = CliRunner().invoke(app, [*line.split(), *options.split()])
    assert refused.exit_code == DataError.exit_code
    done = CliRunner().invoke(app, [*line.split(), "--labels", "classes.txt", *options.split()])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["quantized"]["scores"]["top1"]["value"] == 1.0
    assert "image_resize = 8" in (tmp_path / "out" / "fptq.toml").read_text()
