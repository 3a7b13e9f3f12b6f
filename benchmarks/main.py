"""fptq against the other int8 tools, on seven networks and two engines: one command, one table.

python benchmarks/main.py                        everything; what is already made is not made again
python benchmarks/main.py --networks unet        one network
python benchmarks/main.py --report               the tables of the last run again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from artifacts import peers_python
from bars import AGAINST_PEERS, SQNR_AGAINST_PEERS, Bar, bars, counted, help_bar
from contest import contest
from layout import HERE, NETWORKS, Folder
from results import Measured, read_measured
from tables import markdown


def main() -> None:
    arguments = _arguments()
    folders = [Folder(name=name, results=arguments.results) for name in arguments.networks]
    if not arguments.report:
        python = arguments.peers_python or peers_python(HERE.parent / ".venv-peers")
        made = [sys.executable, str(HERE / "networks.py"), "--results", str(arguments.results)]
        subprocess.run([*made, "--networks", *arguments.networks], check=True)
        for folder in folders:
            print(folder.name, flush=True)
            measured = contest(folder, python=python, rounds=arguments.rounds, seconds=arguments.seconds)
            measured.save(folder.measured)
    found = [read_measured(folder.measured) for folder in folders if folder.measured.exists()]
    every = _bars(found)
    text = markdown(found, every)
    print(text)
    (arguments.results / "benchmark.md").write_text(text + "\n", encoding="utf-8")
    bars_json = json.dumps([asdict(bar) | {"met": bar.met} for bar in every], indent=1)
    (arguments.results / "bars.json").write_text(bars_json + "\n", encoding="utf-8")


def _bars(found: list[Measured]) -> list[Bar]:
    every = [bar for measured in found for bar in bars(measured)]
    return [*every, counted(every, AGAINST_PEERS), counted(every, SQNR_AGAINST_PEERS), help_bar()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15, help="timed turns")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of the turns on each engine")
    parser.add_argument("--results", type=Path, default=Folder(name="").results, help="work folder")
    parser.add_argument("--peers-python", type=Path, help="the interpreter of an environment that has the peers")
    parser.add_argument("--report", action="store_true", help="only print what was measured before")
    return parser.parse_args()


if __name__ == "__main__":
    main()
