"""Windows into a ring of planes: against a dense float64 reference, in float16, and interrupted at every step."""

import numpy as np
import pytest

from fptq.errors import ModelError, OutputError
from fptq.feeds import scratch
from fptq.tasks.stitch import Stitcher
from fptq.tasks.store import FolderStore, MemoryStore
from fptq.tasks.windows import WindowGrid

GRID = WindowGrid(shape=(21, 13, 11), size=(8, 8, 8), overlap=0.5)


def network(windows):
    """Outputs that depend on where in the window a voxel lies, so that blending matters."""
    ramp = np.linspace(-1, 1, windows.shape[2])[:, None, None]
    return np.concatenate([windows * (1 + 0.3 * ramp), 3 * ramp - windows, windows**2], axis=1).astype(np.float32)


def image(shape=GRID.shape, seed=0):
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def dense(volume, grid, predict=network):
    """The same in float64 with a volume of sums and one of weights."""
    total = count = None
    for index in range(len(grid)):
        output = predict(grid.cut(volume, index)[None])[0].astype(np.float64)
        weight = grid.shares(index).astype(np.float64)
        if total is None:
            total, count = np.zeros((len(output), *grid.padded)), np.zeros(grid.padded)
        region = tuple(slice(s, s + n) for s, n in zip(grid.start(index), grid.size, strict=True))
        total[(slice(None), *region)] += output * weight
        count[region] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(grid.before, grid.shape, strict=True))
    return (total / count)[(slice(None), *inside)]


def collected(grid, channels=3):
    """An array and the function that fills it."""
    whole = np.full((channels, *grid.shape), np.nan, np.float32)

    def finish(first, planes):
        whole[:, first : first + planes.shape[1]] = planes

    return whole, finish


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [((21, 13, 11), (8, 8, 8), 0.5), ((20,), (6,), 0.8), ((9, 30), (16, 7), 0.25), ((5, 5), (3, 3), 0.0)],
)
def test_windows_in_a_ring_are_windows_in_a_volume(shape, size, overlap, batch):
    grid = WindowGrid(shape=shape, size=size, overlap=overlap)
    volume = image(shape)

    def predict(windows):
        return np.concatenate([windows + np.arange(windows.shape[-1]), windows**2], axis=1).astype(np.float32)

    whole, finish = collected(grid, 2)
    assert Stitcher(predict=predict, grid=grid, batch=batch).run(volume, MemoryStore(), finish) == 2
    np.testing.assert_allclose(whole, dense(volume, grid, predict), atol=2e-5)


def test_planes_come_in_order_and_once():
    told = []
    Stitcher(predict=network, grid=GRID).run(
        image(), MemoryStore(), lambda first, planes: told.extend(range(first, first + planes.shape[1]))
    )
    assert told == list(range(21))


def test_float16_sums_stay_within_the_stated_error(monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 0)
    volume = image() * 20
    store = MemoryStore()
    whole, finish = collected(GRID)
    Stitcher(predict=network, grid=GRID).run(volume, store, finish)
    assert store.arrays["sums"].dtype == np.float16
    outputs = network(np.stack([GRID.cut(volume, index) for index in range(len(GRID))]))
    bound = GRID.cover * 2**-11 * np.abs(outputs).max(axis=(0, 2, 3, 4))
    error = np.abs(whole - dense(volume, GRID)).max(axis=(1, 2, 3))
    assert (error <= bound).all()
    assert (error > 2**-13 * np.abs(outputs).max(axis=(0, 2, 3, 4))).all()  # it is float16 that was measured


def test_values_beyond_float16_saturate(monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 0)
    whole, finish = collected(GRID, 1)
    Stitcher(predict=lambda windows: windows * 0 + 1e6, grid=GRID).run(image(), MemoryStore(), finish)
    assert (whole == 65504).all()


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


class Dying(FolderStore):
    """A store whose process ends before its n-th mark, or between a mark and what follows it."""

    def __init__(self, folder, key, left):
        self.left = 10**9
        super().__init__(folder, key)
        self.left = left

    def mark(self):
        self.left -= 1
        if self.left < 0:
            raise Killed
        super().mark()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("left", [0, 1, 2, 7, 8, 25])
def test_a_run_that_dies_anywhere_goes_on_to_the_same_result(tmp_path, monkeypatch, dtype, left):
    if dtype == np.float16:
        monkeypatch.setattr(scratch, "LARGE", 0)
    expected, finish = collected(GRID)
    Stitcher(predict=network, grid=GRID).run(image(), MemoryStore(), finish)
    whole, finish = collected(GRID)
    calls = []

    def counted(windows):
        calls.append(len(windows))
        return network(windows)

    stitcher = Stitcher(predict=counted, grid=GRID)
    deaths = 0
    while True:
        store = Dying(tmp_path / "part", "key", left + 2)
        try:
            stitcher.run(image(), store, finish)
            break
        except Killed:
            deaths += 1
            store.close()
    np.testing.assert_array_equal(whole, expected)
    assert deaths
    # A window whose sums were staged is never computed again: at most one call is lost each time.
    assert len(calls) <= len(GRID) + deaths


def test_a_kill_while_sums_are_replaced_is_made_good(tmp_path, monkeypatch):
    expected, finish = collected(GRID)
    Stitcher(predict=network, grid=GRID).run(image(), MemoryStore(), finish)
    replace, count = Stitcher._replace, iter(range(10**6))

    def torn(self, sums, index, new):
        if next(count) == 9:
            window, ring = next(self._places(index))
            sums[ring][..., :2] = new[window][..., :2]
            raise Killed
        replace(self, sums, index, new)

    whole, finish = collected(GRID)
    monkeypatch.setattr(Stitcher, "_replace", torn)
    store = FolderStore(tmp_path / "part", "key")
    with pytest.raises(Killed):
        Stitcher(predict=network, grid=GRID).run(image(), store, finish)
    store.close()
    again = FolderStore(tmp_path / "part", "key")
    assert (again.staged, again.done) == (10, 9)
    Stitcher(predict=network, grid=GRID).run(image(), again, finish)
    np.testing.assert_array_equal(whole, expected)


def test_the_state_of_another_key_is_discarded(tmp_path):
    store = FolderStore(tmp_path / "part", "one")
    store.array("sums", (2, 3), np.float32)[:] = 7
    store.done = 4
    store.mark()
    store.close()
    again = FolderStore(tmp_path / "part", "one")
    assert again.done == 4
    assert again.found("sums").sum() == 42
    again.close()
    other = FolderStore(tmp_path / "part", "two")
    assert other.done == 0
    assert other.found("sums") is None
    other.discard()
    assert not (tmp_path / "part").exists()


def test_the_state_of_another_boot_is_discarded(tmp_path, monkeypatch):
    store = FolderStore(tmp_path / "part", "one")
    store.done = 4
    store.mark()
    store.close()
    monkeypatch.setattr("fptq.tasks.store._boot", lambda: "another")
    assert FolderStore(tmp_path / "part", "one").done == 0


def test_one_process_at_a_time_works_on_a_scan(tmp_path):
    store = FolderStore(tmp_path / "part", "one")
    with pytest.raises(OutputError, match="another process works in"):
        FolderStore(tmp_path / "part", "one")
    store.close()
    FolderStore(tmp_path / "part", "one").discard()
    assert not (tmp_path / "part").exists()


def test_outputs_off_the_grid_of_their_windows_are_refused():
    with pytest.raises(ModelError, match="on the grid of its input"):
        Stitcher(predict=lambda windows: windows[:, :, ::2], grid=GRID).run(image(), MemoryStore(), lambda *_: None)
