"""Peak memory of quantizing a transformer with large random weights, as a multiple of its float32 size.

python benchmarks/memory.py                                     every way of giving it, every recipe
python benchmarks/memory.py --given onnx --recipe auto --engine openvino

Each number is from a fresh process, above what it held when all libraries were loaded and warm: a small network of
the same kind has been quantized in it. A second process reads `/proc/PID/status` every ten milliseconds (a thread
would wait while an engine compiles):

- anon: `RssAnon`, memory that nothing but this process holds and that cannot be dropped. The bars are about this.
- rss: `VmRSS`: with pages of mapped files, which the system drops where memory is short.
- tree: `RssAnon` of the process and of its children (a child measures what a network needs to be loaded).

Both start before the network is made (a module) or opened (a file): a live module's own weights count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

BARS = {"onnx": 1.6, "module": 2.2}
"""At most this many times the network's size."""
_WIDTH, _HEADS, _LENGTHS = 1280, 20, (24, 32, 40, 24, 32, 40)
_PERIOD_S = 0.01
_SRC = str(Path(__file__).resolve().parent.parent / "src")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a process held at a moment [bytes]."""

    at: float
    anon: int
    rss: int
    tree: int


class Watch:
    """Samples of this process's memory, from another process, and the functions it was in meanwhile."""

    def __enter__(self) -> Watch:
        self._stages: list[tuple[float, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(threading.get_ident(),), daemon=True)
        self._child = subprocess.Popen(
            [sys.executable, "-S", __file__, "--watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        self._child.stdout.readline()  # it is up
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        written, _ = self._child.communicate("")
        self.samples = [Sample(**json.loads(line)) for line in written.splitlines()]

    def stage(self, at: float) -> str:
        """The functions of fptq that the process was in, the outermost first."""
        return next((stage for begun, stage in reversed(self._stages) if begun <= at), "")

    def _follow(self, thread: int) -> None:
        while not self._over.wait(_PERIOD_S):
            stage = _stage(sys._current_frames()[thread])
            if not self._stages or self._stages[-1][1] != stage:
                self._stages.append((time.monotonic(), stage))


def _stage(frame: FrameType | None) -> str:
    """The functions of fptq on a stack; read off the frames, as `traceback` clears the sources that torch reads."""
    found: list[str] = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(_SRC):
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " > ".join(reversed(found))


def watch_parent() -> None:
    """Write the parent's memory, a line whenever it is another, until the parent closes the pipe."""
    import os
    import select

    parent, me = os.getppid(), os.getpid()
    sys.stdout.write("up\n")
    sys.stdout.flush()
    found: list[str] = []
    while not select.select([sys.stdin], [], [], _PERIOD_S)[0]:
        anon, rss = _status(parent)
        tree = anon + sum(_status(child)[0] for child in _children(parent) if child != me)
        found.append(json.dumps({"at": time.monotonic(), "anon": anon, "rss": rss, "tree": tree}))
    sys.stdout.write("\n".join(found))


def _status(process: int) -> tuple[int, int]:
    """`RssAnon` and `VmRSS` [bytes]; zeros when the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    held = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines)
        if "Rss" in name or name == "VmRSS"
    }
    return held.get("RssAnon", 0), held.get("VmRSS", 0)


def _children(process: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, file.read_text(encoding="ascii").split())
        except OSError:
            continue
    return found


def make_module(layers: int, width: int = _WIDTH):
    """An `EsmModel` with random weights: 79 MB for each layer of 1280."""
    import torch
    from transformers import EsmConfig, EsmModel

    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=_HEADS, intermediate_size=4 * width, max_position_embeddings=1026,
        position_embedding_type="rotary", token_dropout=False, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )  # fmt: skip
    return EsmModel(config, add_pooling_layer=False).eval()


def samples():
    """Short sequences, each a call by keyword."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(4, 24, (1, length), generator=generator)} for length in _LENGTHS]


def write_onnx(path: Path, layers: int) -> int:
    """The same network as a file with external data; returns its size [bytes]."""
    import torch

    module = make_module(layers)
    ids = samples()[0]["input_ids"].repeat(2, 1)
    dims = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    torch.onnx.export(
        module, kwargs={"input_ids": ids}, f=path, dynamo=True, dynamic_shapes=dims, external_data=True,
        input_names=["input_ids"], output_names=["last_hidden_state"],
    )  # fmt: skip
    return size_of(module)


def size_of(module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Quantize in this process; the peaks as multiples of the network's size."""
    import fptq

    def quantize(network: object, calibration: object, gate: str) -> None:
        fptq.quantize(
            network, calibration=calibration, recipe=arguments.recipe, engine=arguments.engine, gate=gate,
            threads=1, cache=Path(arguments.folder) / f"cache-{arguments.given}-{arguments.recipe}",
        )  # fmt: skip

    quantize(make_module(1, 80), samples(), "off")  # imports, kernels, thread pools
    size = arguments.bytes
    calibration = samples()
    if arguments.given == "onnx":
        calibration = [{name: tensor.numpy() for name, tensor in sample.items()} for sample in calibration]
    start = time.monotonic()
    with Watch() as watch:
        time.sleep(0.1)
        network = (
            make_module(arguments.layers) if arguments.given == "module" else Path(arguments.folder) / "model.onnx"
        )
        quantize(network, calibration, arguments.gate)
    before = watch.samples[0]
    found: dict[str, object] = {"seconds": round(time.monotonic() - start, 1)}
    for what in ("anon", "rss", "tree"):
        peak = max(watch.samples, key=lambda sample, what=what: getattr(sample, what))
        found[what] = round((getattr(peak, what) - getattr(before, what)) / size, 3)
        found[f"{what}_stage"] = watch.stage(peak.at)
    if arguments.trace:
        found["trace"] = _trace(watch, before, size)
    return found


def _trace(watch: Watch, before: Sample, size: int) -> list[str]:
    """The peak within each function, in order."""
    highest: dict[str, Sample] = {}
    for sample in watch.samples:
        stage = " > ".join(watch.stage(sample.at).split(" > ")[1:7])
        if stage not in highest or sample.anon > highest[stage].anon:
            highest[stage] = sample
    columns = ((s.anon - before.anon, s.rss - before.rss, s.tree - before.tree) for s in highest.values())
    return [
        " ".join(f"{held / size:6.2f}" for held in row) + f"  {stage}"
        for row, stage in zip(columns, highest, strict=True)
    ]


def in_fresh_process(given: str, recipe: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The same from another process."""
    command = [sys.executable, __file__, "--measure", "--given", given, "--recipe", recipe, "--folder", str(folder)]
    command += ["--engine", arguments.engine, "--gate", arguments.gate, "--layers", str(arguments.layers)]
    command += ["--bytes", str(arguments.bytes)] + ["--trace"] * arguments.trace
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--recipe", nargs="+", default=["fast", "auto"])
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--gate", choices=("off", "measured"), default="measured")
    parser.add_argument("--layers", type=int, default=12, help="of 79 MB each")
    parser.add_argument("--trace", action="store_true", help="print the peak within each function")
    for hidden in ("--watch", "--measure"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        return watch_parent()
    if arguments.measure:
        arguments.given, arguments.recipe = arguments.given[0], arguments.recipe[0]
        print(json.dumps(measure(arguments)))
        return None
    with tempfile.TemporaryDirectory(prefix="fptq-memory-") as name:
        folder = Path(name)
        arguments.bytes = write_onnx(folder / "model.onnx", arguments.layers)
        print(f"{arguments.bytes / 1e6:.0f} MB, {arguments.engine}, gate {arguments.gate}", flush=True)
        for given in arguments.given:
            for recipe in arguments.recipe:
                found = in_fresh_process(given, recipe, folder, arguments)
                for line in found.pop("trace", []):
                    print(line)
                print(given, recipe, f"bar {BARS[given]}", json.dumps(found, indent=1), flush=True)
    return None


if __name__ == "__main__":
    main()
