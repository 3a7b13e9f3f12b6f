"""What the rows of `proteins.py` cost on both engines: each of 8 bits beside the float network, in turns.

python benchmarks/proteins_latency.py --make     write the files (kept)
python benchmarks/proteins_latency.py            time them on a quiet machine, then `proteins.py --report` shows it

Codes of 6 and 4 bits run in the kernels of 8, so they take as long.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import antiberty
from fptq.demo.assets import fetch
from fptq.graph.write import save
from fptq.types import Feeds
from measure import ONNXRUNTIME, OPENVINO_F32, Setting, latencies
from proteins import SEQUENCES, Bench
from proteins_results import LATENCIES, RESULTS, ROWS, Case, cases
from proteins_subject import Split, Subject

SETTINGS = {setting.engine: setting for setting in (ONNXRUNTIME, OPENVINO_F32)}
TOKENS = 128
POLICIES = ["uniform", "PWLQ", "PWLQ-3", "per token"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--make", action="store_true", help="only write the files that are missing")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each")
    given = parser.parse_args()
    for engine in given.engines:
        chosen = list(cases(engine, given.rows, [8], given.policies, SEQUENCES))
        _make([case for case in chosen if not _file(case).exists()])
        if not given.make:
            _time(SETTINGS[engine], chosen, given.rounds)


def _file(case: Case) -> Path:
    return RESULTS / "files" / case.path.with_suffix(".onnx").name


def _make(missing: list[Case]) -> None:
    if not missing:
        return
    bench = Bench(subject=_subject(missing[0].engine), folder=RESULTS)
    for case in missing:
        path = _file(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(bench.network(case), path)
        print(f"wrote {path.name}", flush=True)


def _time(setting: Setting, chosen: list[Case], rounds: int) -> None:
    """Each beside the float network in a session of its own: many at once share the caches that one would have."""
    whole, *others = chosen
    feeds = _tokens(setting.engine)
    reference = setting.compile(_file(whole))
    for case in others:
        timed = latencies(
            {"float": reference, "this": setting.compile(_file(case))}, feeds, rounds=rounds, seconds=20.0
        )
        known = json.loads(LATENCIES.read_text()) if LATENCIES.exists() else {}
        known[case.path.stem] = {name: latency.median_ms for name, latency in timed.items()}
        LATENCIES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(case.path.stem, known[case.path.stem], flush=True)


def _tokens(engine: str) -> Feeds:
    """One sequence of `TOKENS` tokens: time does not depend on which."""
    ((name, tokens),) = _subject(engine).calibration[0].items()
    return {name: np.resize(tokens[:, 1:-1], (1, TOKENS)).astype(tokens.dtype)}


def _subject(engine: str) -> Subject:
    return Subject(engine=engine, split=Split.of(antiberty.read_sequences(fetch("antibodies")), SEQUENCES))


if __name__ == "__main__":
    main()
