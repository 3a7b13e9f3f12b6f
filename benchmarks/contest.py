"""One network against all tools: files, latency in turns, output error, cost of calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from artifacts import FORWARD, FPTQ, TOOLS, Artifact, make
from fptq.engines import ENGINES, Session
from fptq.engines.cpu import detect
from fptq.errors import FptqError
from fptq.tasks import compare
from fptq.types import Feeds
from layout import Folder
from limit import convolution_macs, peak_int8_macs_per_s
from measure import (
    ONNXRUNTIME,
    OPENVINO,
    OPENVINO_F32,
    SIMULATION,
    THREADS,
    TIMED,
    Latency,
    Setting,
    latencies,
    read_samples,
)
from results import Measured, Row

FEW = 3
Latencies = dict[str, dict[str, Latency]]


def contest(folder: Folder, *, python: Path, rounds: int, seconds: float) -> Measured:
    """Measure everything about one network.

    Args:
        folder: The network.
        python: The peers' interpreter.
        rounds: Timed turns.
        seconds: Time limit of the turns on each engine [s].
    """
    made = [make(tool, preset, folder, python=python) for tool in TOOLS for preset in tool.presets(folder.name)]
    forward = make(FORWARD, "forward", folder, python=python)
    calibration = make(TOOLS[0], "calibration", folder, python=python)
    few = make(TOOLS[0], "calibration", folder, python=python, samples=FEW)
    whole = Artifact(
        tool="float", preset="", path=folder.float_model, per_sample_s=forward.per_sample_s, peak_mb=forward.peak_mb
    )
    files = {artifact.label: artifact for artifact in [whole, *made] if not artifact.error}
    samples = read_samples(folder.evaluation)
    print("  latency", flush=True)
    times = latencies_by_setting(files, samples[0], rounds=rounds, seconds=seconds)
    print("  output error", flush=True)
    errors = errors_by_setting(files, samples)
    dice = _dice(files) if folder.name == "deepbet" else {}
    rows = [
        replace(_row(artifact), latency=times.get(a, {}), sqnr_db=errors.get(a, {}), dice=dice.get(a, {}))
        for artifact in [whole, *made]
        for a in [artifact.label]
    ]
    return Measured(
        network=folder.name,
        rows=tuple(rows),
        calibration=_row(calibration),
        few_samples=_row(few),
        macs=convolution_macs(folder.float_model),
        peak_macs_per_s=peak_int8_macs_per_s(),
        machine=machine(made),
    )


def machine(made: Sequence[Artifact]) -> str:
    cpu = detect()
    engines = [f"{engine.name} {engine.version()}" for engine in ENGINES.values()]
    tools = dict.fromkeys(f"{artifact.tool} {artifact.version}" for artifact in made if artifact.version)
    return (
        f"{cpu.name} ({', '.join(sorted(cpu.features))}), {THREADS} threads, batch 1; {', '.join([*engines, *tools])}"
    )


def _row(artifact: Artifact) -> Row:
    tool = next((tool for tool in TOOLS if tool.name == artifact.tool), FORWARD)
    return Row(
        tool=artifact.tool,
        preset=artifact.preset,
        version=artifact.version,
        size_mb=float("nan") if artifact.error else artifact.size_mb,
        seconds=artifact.seconds,
        per_sample_s=artifact.per_sample_s,
        peak_mb=artifact.peak_mb,
        calibrates_in=tool.calibrates_in,
        error=artifact.error,
    )


def latencies_by_setting(files: Mapping[str, Artifact], feeds: Feeds, *, rounds: int, seconds: float) -> Latencies:
    """Latency by file and setting. The settings of one engine take turns; a tool enters with its fastest preset."""
    found: Latencies = {}
    for group in ((OPENVINO_F32, OPENVINO), (ONNXRUNTIME,)):
        sessions = {}
        for setting in group:
            for label in finalists(files, setting, feeds):
                session = compiled(setting, files[label].path)
                if session is not None:
                    sessions[label, setting.name] = session
        named = {f"{label}|{setting}": session for (label, setting), session in sessions.items()}
        timed = latencies(named, feeds, rounds=rounds, seconds=seconds)
        for label, setting_name in sessions:
            found.setdefault(label, {})[setting_name] = timed[f"{label}|{setting_name}"]
    return found


def finalists(files: Mapping[str, Artifact], setting: Setting, feeds: Feeds) -> list[str]:
    """Fptq's files and the float network as they are, of each peer the preset that is fastest here."""
    runnable = {label: file for label, file in files.items() if setting.runs(file.path)}
    finalists = []
    for tool in dict.fromkeys(file.tool for file in runnable.values()):
        labels = [label for label, file in runnable.items() if file.tool == tool]
        if tool != FPTQ and len(labels) > 1:
            labels = [min(labels, key=lambda label: _quick(setting, runnable[label].path, feeds))]
        finalists += labels
    return finalists


def _quick(setting: Setting, path: Path, feeds: Feeds) -> float:
    """A first idea of a file's latency [ms]; infinite where the engine refuses it."""
    session = compiled(setting, path)
    return latencies({"": session}, feeds, rounds=3, seconds=20)[""].median_ms if session else float("inf")


def compiled(setting: Setting, path: Path) -> Session | None:
    try:
        return setting.compile(path)
    except FptqError as error:
        print(f"  {setting.name} refuses {path}: {error}")
        return None


def errors_by_setting(files: Mapping[str, Artifact], samples: Sequence[Feeds]) -> dict[str, dict[str, float]]:
    """Output SQNR by file and setting, against the float network on the same engine."""
    found: dict[str, dict[str, float]] = {label: {} for label in files}
    whole = files["float"].path
    for setting in (*TIMED, SIMULATION):
        # bf16 has an error of its own: the reference is the same float network in f32.
        reference = (OPENVINO_F32 if setting is OPENVINO else setting).compile(whole)
        for label, file in _worth_it(files, setting):
            session = compiled(setting, file.path)
            if session is not None:
                found[label][setting.name] = compare(reference, session, samples).sqnr_db
    return found


def _worth_it(files: Mapping[str, Artifact], setting: Setting) -> Iterable[tuple[str, Artifact]]:
    """Everything on the engines with an f32 remainder; in bf16 and in the simulation what is asked about fptq."""
    for label, file in files.items():
        wanted = setting in {OPENVINO_F32, ONNXRUNTIME} and file.tool != "float"
        wanted |= setting is OPENVINO and file.tool in {FPTQ, "float"}
        wanted |= setting is SIMULATION and file.tool == FPTQ
        if wanted and setting.runs(file.path):
            yield label, file


def _dice(files: Mapping[str, Artifact]) -> dict[str, dict[str, float]]:
    """Dice of each file's brain mask on Colin27, against the float network's own mask and against the label."""
    from fptq.demo.brain import brain_task, evaluation_case

    case, _ = evaluation_case()
    runners = {label: OPENVINO_F32.compile(file.path) for label, file in files.items()}
    scores = brain_task(case).evaluate_all(runners)
    return {
        label: {entry.name: entry.value for entry in score.entries if entry.name in {"dice", "agreement_dice"}}
        for label, score in scores.items()
    }
