"""hack/compile.py: what its key follows, what the cache keeps, what a failure leaves. Nothing is compiled here."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hack import compile as compiler
from hack.compile import KEPT, LEDGER, MODULES, PACKAGE, compile_into, kept, key


def sources(folder: Path) -> Path:
    package = folder / "fairlead_router"
    package.mkdir()
    (package / "server.py").write_text("ONE = 1\n", encoding="utf-8")
    return package


def no_compiler(folder: Path) -> str:
    """A Python that says what it is, and fails at everything else."""
    program = folder / "python"
    program.write_text('#!/bin/sh\ncase "$2" in *sys.version*) echo 3.11;; *) exit 1;; esac\n', encoding="utf-8")
    program.chmod(0o755)
    return str(program)


def test_every_module_that_is_compiled_exists() -> None:
    found = {package.name: package for package in (PACKAGE, LEDGER)}
    assert found.keys() == MODULES.keys()
    named = [found[package] / f"{name.replace('.', '/')}.py" for package in MODULES for name in MODULES[package]]
    assert [path for path in named if not path.is_file()] == []


def test_the_key_follows_sources_and_python(tmp_path: Path) -> None:
    package = sources(tmp_path)
    before = key(sys.executable, package)
    assert key(sys.executable, package) == before
    assert key(no_compiler(tmp_path), package) != before
    (package / "server.py").write_text("ONE = 2\n", encoding="utf-8")
    changed = key(sys.executable, package)
    assert changed != before
    (package / "inner").mkdir()
    (package / "inner" / "data.toml").write_text("one = 1\n", encoding="utf-8")
    assert key(sys.executable, package) not in {before, changed}


def test_what_could_not_be_compiled_leaves_what_was_there(tmp_path: Path) -> None:
    package, python = sources(tmp_path), no_compiler(tmp_path)
    target = tmp_path / "out" / "compiled"
    target.mkdir(parents=True)
    with pytest.raises(subprocess.CalledProcessError):
        compile_into(target, python, package)
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(subprocess.CalledProcessError):
        kept(tmp_path / "cache", python, package)
    assert not list((tmp_path / "cache").iterdir())


def test_two_at_a_time_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(folder: Path, python: str, package: Path) -> None:
        del python, package
        made.append(folder)
        asked.wait()
        time.sleep(0.1)
        folder.mkdir()

    monkeypatch.setattr(compiler, "compile_into", make)
    package, asked = sources(tmp_path), threading.Barrier(2, timeout=10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept, tmp_path / "cache", sys.executable, package)
        asked.wait()
        second = pool.submit(kept, tmp_path / "cache", sys.executable, package)
    assert [first.result(), second.result()] == 2 * made


def test_the_cache_compiles_once_and_keeps_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(folder: Path, python: str, package: Path) -> None:
        assert (python, package.name) == (sys.executable, "fairlead_router")
        folder.mkdir(parents=True)
        made.append(folder)

    monkeypatch.setattr(compiler, "compile_into", make)
    package = sources(tmp_path)
    for number in range(KEPT + 2):
        (package / "server.py").write_text(f"ONE = {number}\n", encoding="utf-8")
        folder = kept(tmp_path / "cache", sys.executable, package)
        assert kept(tmp_path / "cache", sys.executable, package) == folder == made[-1]
        os.utime(folder, (number, number))
    assert len(made) == KEPT + 2
    assert sorted((tmp_path / "cache").iterdir()) == sorted(made[-KEPT:])
