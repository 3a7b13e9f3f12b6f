"""Checkpoints in local folders."""

import json
import sys

import pytest

from fptq.errors import MissingExtra, ModelError
from fptq.graph.load import load
from fptq.graph.pretrained import is_pretrained, load_pretrained


@pytest.mark.parametrize("opened", [load, load_pretrained])
def test_a_checkpoint_that_is_not_there_says_the_command(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"hf download facebook/esm2_t6_8M_UR50D --local-dir esm2_t6_8M_UR50D"
    ) as found:
        opened("facebook/esm2_t6_8M_UR50D")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["models/net.onnx", "net", "a/b/c"])
def test_other_names_are_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"does not exist"):
        load(name)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    assert not is_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "0 architectures")]
)
def test_a_configuration_without_an_architecture(content, words, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        load_pretrained(tmp_path)


def test_transformers_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["EsmModel"]}))
    with pytest.raises(MissingExtra, match=r"fptq\[transformers\]"):
        load_pretrained(tmp_path)


def test_weights_that_are_missing_and_classes_that_are_not(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["EsmModel"], "model_type": "esm"}))
    with pytest.raises(ModelError, match=r"cannot be opened as EsmModel") as found:
        load_pretrained(tmp_path)
    assert "\n" not in str(found.value)
    with pytest.raises(ModelError, match="has no Nothing"):
        load_pretrained(tmp_path, architecture="Nothing")
