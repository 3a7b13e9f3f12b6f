from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.config import PreprocessTable, Recipe, load_recipe
from fptq.errors import ConfigError
from fptq.feeds import ImageSpec, PreprocessSpec


def refused(options: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.of(options, source="fptq.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"observr": "lp"}, "unknown key 'observr'; the nearest one is 'observer'"),
        ({"keep-float": ["a"]}, "unknown key 'keep-float'; the nearest one is 'keep_float'"),
        ({"preprocess": {"spacng": [1, 1, 1]}}, "'preprocess.spacng'; the nearest one is 'spacing'"),
        ({"zzz": 1}, "the keys are calib, val, labels"),
        ({"threads": "two"}, "threads = 'two' should be a valid integer"),
        ({"engine": "tensorflow"}, "engine = 'tensorflow' should be 'auto', 'onnxruntime', 'openvino' or 'tensorrt'"),
        ({"precision": {"a": "int4"}}, "precision.a = 'int4' should be 'int8' or 'float'"),
        ({"precision": "a=int8"}, "precision = 'a=int8' should be a valid table"),
        ({"preprocess": 3}, "preprocess = 3 should be a valid table"),
        ({"preprocess": {"window": [1]}}, "preprocess.window.1 is missing"),
        ({"percentile": float("nan")}, "percentile = nan should be a finite number"),
        ({"percentile": 50}, "should be greater than 50"),
        ({"patch": []}, "patch is empty"),
        ({"patch": [0]}, "patch.0 = 0 should be greater than or equal to 1"),
        ({"samples": 0}, "samples = 0 should be greater than or equal to 1"),
        ({"overlap": 1.0}, "overlap = 1.0 should be less than 1"),
        ({"weight_bits": 17}, "weight_bits = 17 should be less than or equal to 16"),
        ({"recipe": "slow"}, "recipe = 'slow' should be 'auto', 'fast' or 'best'"),
        ({"p": 9}, "p = 9 should be less than or equal to 8"),
        ({"also_quantize": ["norm"]}, "also_quantize.0 = 'norm' should be 'layernorm', 'softmax' or 'activation'"),
        (
            {"regions": "two", "bits": "w4a8"},
            "regions = 'two' and bits. it is for a network that is quantized as a whole",
        ),
        ({"also_quantize": "softmax", "max_size": "0.3x"}, "also_quantize = ('softmax',) and max_size"),
        ({"also_quantize": "softmax", "plan": "plan.json"}, "a plan says where quantizers stand"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(options: dict[str, Any], says: str) -> None:
    message = refused(options)
    assert says in message
    assert message.startswith("fptq.toml: ")
    assert "\n" not in message


def test_several_problems_are_one_line_each() -> None:
    lines = refused({"threads": "two", "weight_bits": 1, "observr": "lp"}).splitlines()
    assert lines[0] == "fptq.toml has 3 problems:"
    assert [line.split()[0] for line in lines[1:]] == ["weight_bits", "threads", "unknown"]


@pytest.mark.parametrize(
    ("keep_float", "precision"),
    [(["decoder.*"], {"decoder.*": "int8"}), (["decoder.*"], {"decoder.out": "int8"}), (["a"], {"a": "int8"})],
)
def test_a_layer_cannot_be_float_and_int8(keep_float: list[str], precision: dict[str, str]) -> None:
    assert "either kept in float or quantized" in refused({"keep_float": keep_float, "precision": precision})


@pytest.mark.parametrize(
    ("keep_float", "precision"),
    [(["decoder.out"], {"decoder.*": "int8"}), (["stem"], {"*": "int8"}), (["a*"], {"ab": "float"}), (["a"], {})],
)
def test_an_exception_to_a_wider_pattern_is_no_contradiction(keep_float: list[str], precision: dict[str, str]) -> None:
    assert Recipe.of({"keep_float": keep_float, "precision": precision}).keep_float == tuple(keep_float)


def test_labels_need_volumes_and_a_task_that_reads_them() -> None:
    assert "labels without val" in refused({"labels": "masks/", "task": "segmentation"})
    assert "--task segmentation or --task classification" in refused({"labels": "masks/", "val": "scans/"})
    assert Recipe.of({"labels": "m/", "val": "v/", "task": "segmentation"}).labels == "m/"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"scale": 255, "window": [0, 1]},
            "preprocess has scale, which is for images, and window, which is for volumes",
        ),
        ({"image_size": "small"}, "preprocess.image_size = 'small' should be"),
        ({"image_size": [8, 0]}, "preprocess.image_size.1 = 0 should be greater"),
        ({"scale": 0}, "scale = 0 should be greater than 0"),
        ({"mean": 3}, "preprocess.mean = 3 should be"),
    ],
)
def test_a_table_is_for_images_or_for_volumes(table: dict[str, Any], says: str) -> None:
    assert says in refused({"preprocess": table})


def test_a_table_for_images_is_saved_and_read(tmp_path: Path) -> None:
    recipe = Recipe.of({"preprocess": {"image_size": 8, "mean": [0.5], "std": [0.25]}})
    (tmp_path / "fptq.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(tmp_path) == recipe
    assert recipe.preprocess == PreprocessTable(image_size=(8, 8), mean=(0.5,), std=(0.25,))


def test_one_pattern_may_stand_without_a_list() -> None:
    assert Recipe.of({"keep_float": "decoder.*"}).keep_float == ("decoder.*",)


def test_options_override_the_file_and_leave_the_rest() -> None:
    base = Recipe.of({"engine": "openvino", "keep_float": ["a"], "preprocess": {"size": [8, 8, 8]}})
    merged = base.merged(keep_float=("b",), threads=3)
    assert (merged.engine, merged.keep_float, merged.threads) == ("openvino", ("b",), 3)
    assert merged.preprocess == PreprocessTable(size=(8, 8, 8))
    with pytest.raises(ConfigError, match="options: unknown key 'thread'; the nearest one is 'threads'"):
        base.merged(thread=3)
    with pytest.raises(ConfigError, match="either kept in float or quantized"):
        base.merged(precision={"a": "int8"})


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().engine = "openvino"  # type: ignore[misc]


def test_the_preprocess_table_says_what_the_preprocess_takes() -> None:
    spec = {field.name: field.default for field in (*fields(PreprocessSpec), *fields(ImageSpec))}
    assert PreprocessTable().model_dump() == spec


def test_a_file_is_read_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "fptq.toml").write_text(
        'engine = "openvino"\nkeep_float = ["decoder.*"]\nplan = "plan.json"\ncalib = "scans/*.npz"\n'
        'val = "mypkg.data:validation"\n[precision]\n"/head/*" = "int8"\n[preprocess]\nspacing = [1, 1, 2.5]\n',
        encoding="utf-8",
    )
    for path in (tmp_path, tmp_path / "fptq.toml"):
        recipe = load_recipe(path)
        assert recipe.plan == tmp_path / "plan.json"
        assert recipe.calib == str(tmp_path / "scans/*.npz")
        assert recipe.val == "mypkg.data:validation"
        assert recipe.preprocess == PreprocessTable(spacing=(1, 1, 2.5))
        assert recipe.precision == {"/head/*": "int8"}


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    with pytest.raises(ConfigError, match=r"no recipe at .*r\.toml: No such file"):
        load_recipe(file)
    file.write_text("engine = openvino", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.toml is not TOML.*quotes"):
        load_recipe(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(file)
    file.write_text("observr = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.toml: unknown key 'observr'"):
        load_recipe(file)


names = st.text(st.characters(codec="utf-8", exclude_characters="*?["), min_size=1, max_size=12)
recipes = st.builds(
    Recipe,
    keep_float=st.lists(names, max_size=3).map(tuple),
    precision=st.dictionaries(names, st.just("float"), max_size=3),
    percentile=st.floats(50, 100, exclude_min=True),
    gate_seconds=st.floats(0, 1e30, exclude_min=True),
    threads=st.none() | st.integers(1, 2**40),
    symmetric=st.none() | st.booleans(),
    patch=st.none() | st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple),
    preprocess=st.none()
    | names
    | st.builds(PreprocessTable, window=st.none() | st.tuples(st.floats(-1e3, 0), st.floats(1, 1e3))),
    metric=st.none() | names,
)


@given(recipes)
def test_a_recipe_file_gives_back_the_recipe(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    file = tmp_path_factory.mktemp("recipe") / "fptq.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8", newline="")
    assert load_recipe(file) == recipe


def test_a_saved_recipe_works_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fptq.toml").write_text(
        Recipe(calib="scans/", plan=Path("plan.json"), metric="m:f").to_toml(), encoding="utf-8"
    )
    recipe = load_recipe(tmp_path / "out")
    assert recipe.plan == tmp_path / "plan.json"
    assert Path(recipe.calib or "") == tmp_path / "scans"
    assert recipe.metric == "m:f"
