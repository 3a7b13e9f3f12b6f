"""What a bundle says about its network, and every way in which it can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptq.errors import ConfigError, DataError, ModelError
from fptq.feeds.bundle import scan_windows
from fptq.graph.bundle import find_bundle, open_bundle
from fptq.graph.load import LoadOptions, load
from fptq.graph.trust import Trust

pytestmark = [pytest.mark.engine("monai"), pytest.mark.engine("torch")]
TRUSTED = LoadOptions(trust=Trust.SOURCE)


def opened(source: str) -> Any:
    return open_bundle(find_bundle(source), trust=Trust.SOURCE)


def test_a_bundle_is_a_network_of_its_windows_size(made: Any) -> None:
    model = load(made.source, options=TRUSTED)
    assert [(info.shape, info.dtype) for info in model.inputs] == [((1, 1, 16, 16, 16), np.float32)]
    assert model.source == made.source


def same_weights(source: str, other: str) -> bool:
    """Whether two bundles make the same network."""
    first, second = (opened(text).network().state_dict() for text in (source, other))
    return list(first) == list(second) and all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize(
    ("config", "metadata", "window"),
    [
        ({"roi_size": 24}, None, (24, 24, 24)),
        ({"roi_size": [8, -1, 16]}, [16, 24, 16], (8, 24, 16)),
        ({"_target_": "SimpleInferer"}, [16, 32, 16], (16, 32, 16)),
    ],
    ids=["one number", "the image's own", "no window"],
)
def test_windows_are_the_inferers_else_the_metadatas(
    config: dict[str, Any], metadata: list[int] | None, window: tuple[int, ...], changed: Callable[..., str]
) -> None:
    def inferer(document: dict[str, Any]) -> None:
        document["inferer"] = config if "_target_" in config else document["inferer"] | config

    def sizes(document: dict[str, Any]) -> None:
        if metadata is not None:
            document["network_data_format"]["inputs"]["image"]["spatial_shape"] = metadata

    assert opened(changed(config=inferer, metadata=sizes)).window == window


def test_a_config_in_yaml_and_code_of_its_own_are_read(made: Any, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    folder = tmp_path / "bundle"
    shutil.copytree(made.folder, folder)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    config["network_def"] = {"_target_": "scripts.net.build", "norm": "batch"}
    (folder / "configs" / "inference.json").unlink()
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "net.py").write_text(
        "from monai.networks.nets import UNet\n\ndef build(norm):\n"
        "    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm=norm)\n"
    )
    before = list(sys.path)
    assert same_weights(f"monai:{folder}", made.source)
    assert sys.path == before


@pytest.mark.parametrize("form", ["checkpoint", "pickle", "script"])
def test_weights_may_be_in_a_checkpoint_or_a_program(form: str, made: Any, changed: Callable[..., str]) -> None:
    import torch

    source = changed(weights=lambda state: {"model": state, "epoch": 3})
    path = find_bundle(source).weights
    state = torch.load(path, weights_only=True)["model"]
    if form == "pickle":
        torch.save({"model": state, "args": Path()}, path)
    if form == "script":
        network = opened(made.source).network()
        path.unlink()
        torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(path.with_suffix(".ts"))  # type: ignore[no-untyped-call]
    assert same_weights(source, made.source)


def drop(state: dict[str, Any]) -> None:
    state.pop(next(iter(state)))


def other_width(document: dict[str, Any]) -> None:
    document["network_def"]["channels"] = [4, 16, 32]


def two_images(document: dict[str, Any]) -> None:
    inputs = document["network_data_format"]["inputs"]
    inputs["latent"] = inputs["image"]


def no_sizes(document: dict[str, Any]) -> None:
    document["network_data_format"]["inputs"]["image"]["spatial_shape"] = ["8*n", "8*n", "8*n"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": lambda d: d.pop("network_def")}, "has no network_def"),
        ({"config": lambda d: d["network_def"].update(_target_="NoSuchNet")}, "network_def of .* cannot be made"),
        ({"config": lambda d: d["network_def"].update(strides=[2])}, "network_def of .* cannot be made: ValueError"),
        ({"config": lambda d: d["inferer"].update(roi_size=[16, 16])}, r"roi_size .*has 3 axes"),
        ({"config": lambda d: d.pop("inferer"), "metadata": no_sizes}, "gives windows no size"),
        ({"config": other_width}, r"does not fit network_def: \d+ of another shape, as model.*1\.6\.1"),
        ({"metadata": lambda d: d.pop("network_data_format")}, "names as inputs of the network: none"),
        ({"metadata": two_images}, "names as inputs of the network: image, latent"),
        ({"metadata": lambda d: d["network_data_format"]["inputs"]["image"].pop("num_channels")}, "num_channels None"),
        ({"weights": drop}, "1 missing, as model"),
        ({"weights": lambda state: {**state, "head.bias": state[next(iter(state))]}}, "1 unknown, as head.bias"),
        ({"weights": lambda state: [1, 2]}, "holds a list that is no state dict"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: Any, says: str, changed: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load(changed(**changes), options=TRUSTED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("configs/inference.json", r"has no inference.json.*It has metadata.json"),
        ("configs", "Name the folder that holds configs/ and models/"),
        ("configs/metadata.json", r"metadata.json cannot be read"),
        ("models/model.pt", r"has no models/model.pt and no models/model.ts"),
        ("", "is no folder"),
    ],
)
def test_a_missing_part_is_named(gone: str, says: str, made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(made.folder, folder)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ModelError, match=says) as caught:
        load(f"monai:{folder}", options=TRUSTED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["configs/inference.json", "configs/metadata.json", "models/model.pt"])
def test_a_broken_file_is_named(name: str, made: Any, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "bundle")
    (tmp_path / "bundle" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        load(f"monai:{tmp_path / 'bundle'}", options=TRUSTED)


def test_nothing_of_a_bundle_runs_without_trust(changed: Callable[..., str], tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    source = changed(config=lambda d: d.update(network_def=f"$__import__('pathlib').Path({str(trace)!r}).touch()"))
    with pytest.raises(ModelError, match=r"can execute code.*--trust"):
        load(source)
    assert not trace.exists()


def test_without_monai_the_extra_is_named(made: Any) -> None:
    code = (
        "import sys; sys.modules['monai'] = None\n"
        "from fptq.graph.load import LoadOptions, load\nfrom fptq.graph.trust import Trust\n"
        f"load({made.source!r}, options=LoadOptions(trust=Trust.SOURCE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "monai is not installed" in done.stderr
    assert "pip install 'fptq[monai]'" in done.stderr


def test_windows_are_cut_from_what_the_bundle_prepares(made: Any) -> None:
    bundle = opened(made.source)
    network, scans = bundle.network(), sorted(made.scans.iterdir())
    found = list(scan_windows(bundle, network, scans, count=6, seed=1))
    assert [window.shape for window in found] == [(1, 1, 16, 16, 16)] * 6
    assert all(window.min() >= 0 and window.max() <= 1 for window in found)
    whole = bundle.content("preprocessing")({"image": str(scans[0])})["image"].numpy()
    assert set(found[0].ravel().tolist()) <= {*whole.ravel().tolist(), 0.0}


def test_a_scan_that_the_bundle_cannot_prepare_is_named(made: Any, changed: Callable[..., str], tmp_path: Path) -> None:
    import nibabel

    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20, 2), np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((20, 20, 20), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii.gz")
    bundle = opened(made.source)
    network = bundle.network()
    for name, says in (("broken", "cannot be prepared"), ("two", "takes 1 channels"), ("nan", "NaN or infinite")):
        with pytest.raises(DataError, match=rf"{name}\.nii\.gz.*{says}"):
            list(scan_windows(bundle, network, [tmp_path / f"{name}.nii.gz"], count=2))
    bare = opened(changed(config=lambda d: d.pop("preprocessing")))
    with pytest.raises(ConfigError, match="has no preprocessing"):
        list(scan_windows(bare, network, sorted(made.scans.iterdir())))
