"""Writes the options of ``vllm serve`` that the operator knows, as the parsers of both versions tell them.

``python -m hack.vllm.arguments`` writes the file, ``--check`` says whether it differs. Both make vLLM's environment
where it is missing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hack.reference_page import publish
from hack.vllm import environment, newer

FILE = Path("operator/fairlead_operator/decide/engine_table/arguments.json")
PROGRAM = Path(__file__).with_name("check_arguments.py")
SECONDS = 300
ABOUT = (
    "The options of vllm serve in the versions that are known, from vLLM's own parsers (Apache-2.0). takes: nothing; "
    "switch (nothing, and its names include the opposite); text; int; float; size (16, 16k, 2G); json; words (several, "
    "or none). versions: where not all. Written by python -m hack.vllm.arguments."
)


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or compare it; 1 when it differs."""
    return publish(FILE, lambda _: document(told()), "vLLM's parsers", "hack.vllm.arguments", arguments)


def told() -> Mapping[str, list[dict[str, Any]]]:
    """What each version's parser lists, by major and minor version."""
    return {
        short(environment.VERSION): listed(environment.ENGINE_SETTINGS),
        short(newer.VERSION): listed(newer.settings(newer.install())),
    }


def short(version: str) -> str:
    """Major and minor version."""
    return ".".join(version.split(".")[:2])


def listed(settings: Mapping[str, str]) -> list[dict[str, Any]]:
    """The options that the parser under these environment variables has."""
    command = [str(environment.install().python), str(PROGRAM), "--list"]
    env = {**os.environ, **settings, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS, env=env)
    return [json.loads(line) for line in done.stdout.splitlines()]


def document(versions: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """The file: what all versions have once, the rest with its versions; one option a line."""
    found: dict[str, list[str]] = {}
    for version, options in versions.items():
        for option in options:
            found.setdefault(json.dumps(option, sort_keys=True), []).append(version)
    entries = [
        {**json.loads(text), **({} if len(of) == len(versions) else {"versions": of})} for text, of in found.items()
    ]
    lines = ",\n".join(f"  {json.dumps(one)}" for one in sorted(entries, key=json.dumps))
    known = json.dumps(list(versions))
    return f'{{"about": {json.dumps(ABOUT)},\n "versions": {known},\n "options": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    sys.exit(main())
