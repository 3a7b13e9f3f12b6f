"""What `quantize` gives back, and the folder that it becomes."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq import __version__
from fptq.engines import CompileOptions, Session
from fptq.engines.cpu import detect
from fptq.errors import OutputError
from fptq.graph.model import Model
from fptq.graph.rest import LARGE
from fptq.graph.write import file_bytes, remove_stale, save
from fptq.plan import Encoding, save_encoding
from fptq.recipes.bundle_source import forget_bundle, keep_bundle
from fptq.recipes.prepare import Prepared, plan_document
from fptq.recipes.problem import Problem
from fptq.report.html import write_html
from fptq.report.report import Report
from fptq.tasks import SegmentationTask

if TYPE_CHECKING:
    from fptq.engines.module import EngineModule

MODEL_FILE, PACKED_FILE = "model.onnx", "model.packed.onnx"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A quantized network with its evidence.

    Attributes:
        report: Everything that was measured.
        prepared: The network, its encoding and how they came about.
        problem: What was asked.
    """

    report: Report
    prepared: Prepared
    problem: Problem

    @property
    def model(self) -> Model:
        """The Q/DQ network."""
        return self.prepared.model

    @property
    def encoding(self) -> Encoding:
        """Where quantizers stand, with their numbers."""
        return self.prepared.encoding

    @cached_property
    def packed_bytes(self) -> int | None:
        """Size of `model.packed.onnx`; None where no weight has so few bits that there is one."""
        with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
            path = Path(folder) / PACKED_FILE
            self._write_packed(path)
            return file_bytes(path) if path.exists() else None

    def session(self, *, float_precision: str = "default") -> Session:
        """The network compiled on its engine: a callable from arrays by name to arrays by name."""
        with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
            path = Path(folder) / MODEL_FILE
            save(self.model, path, limit=LARGE)
            options = CompileOptions(threads=self.problem.threads, float_precision=float_precision)
            return self.prepared.engine.compile(path, options)

    def as_module(self, *, float_precision: str = "default") -> EngineModule:
        """A module with the call signature and the output type of the original one, computed by the engine."""
        from fptq.engines.module import EngineModule

        model = self.problem.model
        return EngineModule(self.session(float_precision=float_precision), model.signature, model.inputs)

    def save(self, folder: str | Path) -> Path:
        """Write the folder; files of an older result are replaced one by one, each when its successor is whole.

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fptq-", dir=folder) as staging:
                self._write(Path(staging))
                # An older network's; not every result writes them.
                for stale in folder.glob(f"{PACKED_FILE}*"):
                    stale.unlink()
                forget_bundle(folder)
                # The report comes last: a folder with one is complete.
                parts = sorted(Path(staging).iterdir(), key=lambda p: p.name.startswith("report"))
                for part in parts:
                    part.replace(folder / part.name)
                remove_stale(folder / MODEL_FILE, kept={part.name for part in parts})
        except OSError as error:
            raise OutputError(
                f"{folder} could not be written: {error.strerror or error}",
                rule="files that were there are still whole",
                remedy="Check the free space and the permissions",
            ) from error
        return folder

    def _write(self, folder: Path) -> None:
        save(self.model, folder / MODEL_FILE, metadata=self._metadata())
        self._write_packed(folder / PACKED_FILE)
        save_encoding(self.encoding, folder)
        placed = self.prepared.placed or self.encoding.plan
        plan = plan_document(placed, self.problem, outcome=self.prepared.outcome, policies=self.prepared.policies)
        (folder / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
        (folder / "run.py").write_text(self._script(), encoding="utf-8")
        (folder / "fptq.toml").write_text(self.problem.recipe.to_toml(), encoding="utf-8")
        if self.problem.bundle is not None:
            keep_bundle(self.problem.bundle, folder)
        self.report.save(folder)
        write_html(self.report, folder)

    def _write_packed(self, path: Path) -> None:
        """The form whose weights share bytes, where some do."""
        if self.prepared.packed is not None:
            save(self.prepared.packed, path, metadata=self._metadata())

    def _metadata(self) -> dict[str, str]:
        cpu = detect()
        metadata = {
            "fptq.version": __version__,
            "fptq.engine": self.prepared.engine.name,
            "fptq.engine_version": self.prepared.engine.version() or "",
            "fptq.cpu": cpu.name,
            "fptq.cpu_features": " ".join(sorted(cpu.features)),
            "fptq.float_sha256": self.problem.model.sha256,
        }
        return metadata | ({"fptq.unsaved": " ".join(unsaved)} if (unsaved := self._unsaved()) else {})

    def _unsaved(self) -> list[str]:
        """What a task that was given in Python does to scans and masks, and no recipe says."""
        task, recipe = self.problem.task, self.problem.recipe
        if not isinstance(task, SegmentationTask):
            return []
        preprocess = task.preprocess if recipe.preprocess is None else None
        held = {"preprocess": preprocess, "postprocess": task.postprocess, "threshold": task.threshold}
        return [name for name, value in held.items() if value is not None]

    def _script(self) -> str:
        scripts = files("fptq.recipes").joinpath("scripts")
        inputs: dict[str, Any] = {info.name: f"{info.dtype}{list(info.shape or ())}" for info in self.model.inputs}
        facts = _LOADS_ONE if self.prepared.packed is None else _LOADS_EITHER
        facts = facts | {
            "functions": scripts.joinpath(facts["functions"]).read_text(encoding="utf-8") if facts["functions"] else "",
            "threads": str(self.problem.threads),
            "inputs": repr(inputs),
            "only_stored": str(int(not self.prepared.encoding.plan.activations)),
        }
        text = scripts.joinpath(f"run_{self.prepared.engine.name}.py.txt").read_text(encoding="utf-8")
        for name, value in facts.items():
            text = text.replace(f"{{{{{name}}}}}", value)
        return text


_LOADS_ONE = {
    "file": MODEL_FILE,
    "more": "",
    "functions": "",
    "network": f'str(Path(__file__).with_name("{MODEL_FILE}"))',
}
_LOADS_EITHER = {
    "file": f"{MODEL_FILE} or {PACKED_FILE}",
    "more": " (packed: onnx)",
    "functions": "expand.py.txt",
    "network": "loaded()",
}
"""What the scripts say where there is one file, and where there are two."""
