"""What the documents show works: examples run, blocks of code are code, options exist, recipes load."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fptq.cli import app
from fptq.config import Recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{document.name}-{index}")
    for document in DOCUMENTS
    for index, (language, text) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    )
]
DOCTESTED = [path for path in sorted((ROOT / "src").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


def test_benchmarks_find_all_that_they_import() -> None:
    folder = ROOT / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py"))
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_blocks_of_code_are_what_they_say(language: str, text: str) -> None:
    match language:
        case "python":
            compile(text, "block", "exec")
        case "toml":
            Recipe.of(tomllib.loads(text))
        case "bash":
            for command, line in re.findall(r"^ *fptq (\w+)(.*)$", text, flags=re.MULTILINE):
                known = CliRunner().invoke(app, [command, "--help"]).stdout
                assert known, f"there is no fptq {command}"
                for option in re.findall(r" (-{1,2}[a-z][a-z-]*)", line):
                    assert re.search(rf"(?<!\S){option}\b", known), f"fptq {command} has no {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("path", DOCTESTED, ids=lambda path: path.stem)
def test_docstrings_tell_the_truth(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
