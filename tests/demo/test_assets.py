import os
from dataclasses import replace

import pytest

from fptq.demo import assets
from fptq.demo.assets import ASSETS, Debian, PyPI, fetch
from fptq.errors import AssetError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fptq" / "assets"


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_asset_says_what_it_is():
    for asset in ASSETS.values():
        assert len(asset.sha256) == 64
        assert asset.licence
        assert asset.what
        assert not asset.member.startswith("/")
    archives = {asset.archive for asset in ASSETS.values()}
    assert PyPI("deepbet", "1.0.2") in archives
    assert Debian("mricron-data") in archives


@pytest.mark.asset
def test_a_wheel_is_fetched_once_and_checked(cache, monkeypatch):
    path = fetch("deepbrain")
    assert files(cache) == [path]
    # From here on the index is not there: the cache has to do.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch("deepbrain") == path
    path.write_bytes(b"damaged")
    with pytest.raises(AssetError, match=r"deepbrain==0.1 could not be downloaded.*Check the connection"):
        fetch("deepbrain")


@pytest.mark.asset
def test_another_file_than_the_reviewed_one_is_refused(cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "deepbrain", replace(ASSETS["deepbrain"], sha256="0" * 64))
    with pytest.raises(AssetError, match="the one that was reviewed"):
        fetch("deepbrain")
    assert files(cache) == []


@pytest.mark.asset
def test_a_file_that_is_gone_is_named(cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "deepbrain", replace(ASSETS["deepbrain"], member="deepbrain/models/new.pb"))
    with pytest.raises(AssetError, match=r"has no deepbrain/models/new\.pb"):
        fetch("deepbrain")


def test_without_apt_a_debian_asset_says_so(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert not assets.has_apt()
    with pytest.raises(AssetError, match="apt-get"):
        fetch("colin27")


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="XDG_CACHE_HOME"):
        fetch("deepbrain")


@pytest.mark.asset
@pytest.mark.slow
@pytest.mark.skipif(not assets.has_apt(), reason="apt is absent")
def test_a_system_without_package_lists_needs_no_root(cache, tmp_path, monkeypatch):
    (tmp_path / "empty" / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(f'Dir::State::Lists "{tmp_path / "empty"}";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert fetch("colin27-brain").is_file()
    assert fetch("colin27").is_file()
    package = [asset for asset in ASSETS.values() if asset.archive == ASSETS["colin27"].archive]
    assert len(files(cache)) == len(package), "one archive brings all its assets"
    assert files(tmp_path / "empty") == []
