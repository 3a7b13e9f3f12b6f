import sys

import pytest

from fptq.errors import ConfigError
from fptq.feeds import load_callable


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package in the current directory."""
    folder = tmp_path / "sample_user_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "data.py").write_text("class Loader:\n    def batches():\n        return [1, 2]\n\nSEED = 3\n")
    (folder / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in [n for n in sys.modules if n.startswith("sample_user_package")]:
        del sys.modules[name]


def test_a_dotted_name_in_the_current_directory(package):
    assert load_callable("sample_user_package.data:Loader.batches")() == [1, 2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scans/", "package.module:function"),
        ("sample_user_package.dta:batches", "Did you mean data"),
        ("sample_user_packag:batches", "Did you mean sample_user_package"),
        ("sample_user_package.data:Loadr", "Did you mean Loader"),
        ("sample_user_package.data:SEED", "must be callable"),
        ("sample_user_package.broken:f", "a_package_that_is_not_there"),
    ],
)
def test_what_is_wrong_is_said(package, spec, message):
    with pytest.raises(ConfigError, match=message):
        load_callable(spec)
