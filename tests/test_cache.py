"""The content-addressed store."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.cache import Cache, CacheEntry, cache_key, default_folder
from fptq.numerics import PerChannel, QuantizerSpec

KEY = cache_key("something")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "store")


def entry(**arrays):
    return CacheEntry(arrays=arrays, meta={"note": "näive", "numbers": [1, 2.5, None]})


def test_what_was_put_is_got(cache):
    arrays = {
        "a/b": np.arange(6, dtype=np.int64).reshape(2, 3),
        "file": np.float32(1.5),
        "empty": np.zeros((0, 4)),
        "strided": np.arange(10.0)[::3],
        "names": np.array(["x", "yy"]),
    }
    cache.put("kind", KEY, entry(**arrays))
    found = cache.get("kind", KEY)
    assert found.meta == {"note": "näive", "numbers": [1, 2.5, None]}
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == np.asarray(array).dtype


def test_nothing_is_found_under_another_key_or_kind(cache):
    cache.put("kind", KEY, entry())
    assert cache.get("kind", cache_key("something else")) is None
    assert cache.get("other", KEY) is None


def test_a_later_entry_replaces_the_earlier(cache):
    cache.put("kind", KEY, entry(x=np.ones(2)))
    cache.put("kind", KEY, entry(x=np.zeros(1)))
    np.testing.assert_array_equal(cache.get("kind", KEY).arrays["x"], [0])
    assert cache.usage()[0].entries == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign", "pickled"])
def test_a_corrupted_entry_is_ignored_with_a_warning(cache, caplog, damage):
    cache.put("kind", KEY, entry(x=np.arange(1000)))
    path = next(cache.folder.glob("*/*.npz"))
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content)
        case "emptied":
            path.write_bytes(b"")
        case "foreign":
            np.savez(path, x=np.zeros(3))
        case "pickled":
            import zipfile

            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("meta.json", "{}")
                with archive.open("arrays/x", "w") as member:
                    np.lib.format.write_array(member, np.array([{}], dtype=object), allow_pickle=True)
    assert cache.get("kind", KEY) is None
    assert "unreadable cache entry" in caplog.text
    cache.put("kind", KEY, entry(x=np.arange(3)))
    assert cache.get("kind", KEY).arrays["x"].size == 3


def test_an_interrupted_write_leaves_the_old_entry_and_no_rest(cache):
    class Interrupting(dict):
        def items(self):
            yield "x", np.arange(5)
            raise KeyboardInterrupt

    cache.put("kind", KEY, entry(x=np.ones(2)))
    with pytest.raises(KeyboardInterrupt):
        cache.put("kind", KEY, CacheEntry(arrays=Interrupting(), meta={}))
    assert cache.get("kind", KEY).arrays["x"].tolist() == [1, 1]
    assert [path.suffix for path in cache.folder.glob("*/*")] == [".npz"]


def test_a_store_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "store").write_text("a file where the folder should be")
    cache = Cache(tmp_path / "store")
    cache.put("kind", KEY, entry())
    assert "could not keep" in caplog.text
    assert cache.get("kind", KEY) is None


def test_clearing_leaves_foreign_files(cache):
    for number in range(3):
        cache.put("kind", cache_key(number), entry(x=np.zeros(100)))
    cache.put("other", KEY, entry())
    foreign = cache.folder / "assets" / "head.npz"
    foreign.parent.mkdir()
    foreign.write_bytes(b"precious")
    usage = {row.kind: row for row in cache.usage()}
    assert {kind: row.entries for kind, row in usage.items()} == {"kind": 3, "other": 1}
    assert usage["kind"].size_bytes > 3 * 800
    assert cache.clear() == 4
    assert cache.usage() == ()
    assert foreign.read_bytes() == b"precious"


def test_discarding(cache):
    cache.put("kind", KEY, entry())
    cache.discard("kind", KEY)
    cache.discard("kind", KEY)
    assert cache.get("kind", KEY) is None


def test_only_keys_name_entries(cache):
    with pytest.raises(ValueError, match="not a cache key"):
        cache.get("kind", "../../etc/passwd")


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fptq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "fptq"


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda part: st.lists(part, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=2), part, max_size=3),
    max_leaves=6,
)


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_exactly_for_equal_parts(one, other):
    assert cache_key(one) == cache_key(copy.deepcopy(one))
    if one != other:
        assert cache_key(one) != cache_key(other)


def test_types_and_nesting_make_different_keys():
    parts = [
        1,
        1.0,
        True,
        "1",
        b"1",
        None,
        "",
        (),
        {},
        frozenset(),
        ("1",),
        ("1", "1"),
        ("1,1",),
        ((("1",),), "1"),
        np.int64([1]),
    ]
    keys = {cache_key(part) for part in parts} | {cache_key(*parts), cache_key(np.float64([1])), cache_key([[1]])}
    assert len(keys) == len(parts) + 3


def test_dataclasses_sets_and_arrays_are_parts():
    spec = QuantizerSpec(granularity=PerChannel(axis=1))
    assert cache_key(spec) == cache_key(QuantizerSpec(granularity=PerChannel(axis=1)))
    assert cache_key(spec) != cache_key(spec.with_bits(4))
    assert cache_key({3, 1, 2}) == cache_key(frozenset({2, 3, 1}))
    x = np.arange(6.0).reshape(2, 3)
    assert cache_key(x) == cache_key(x.T.copy().T)
    assert cache_key(x) != cache_key(x.reshape(3, 2))


def test_what_has_no_canonical_form_is_refused():
    with pytest.raises(TypeError, match="object cannot be part"):
        cache_key("x", [object()])


def test_keys_are_the_same_in_another_process():
    code = "from fptq.cache import cache_key; print(cache_key({'a', 'b', 'c'}, {'x': 1.5, 'y': None}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == cache_key({"a", "b", "c"}, {"x": 1.5, "y": None})
