"""Show command lines to vLLM's own parser and configuration, without starting an engine. Runs with vLLM's interpreter.

usage: check_arguments.py < lines     stdin: {"arguments": [...], "model", "draft", "defaults"} on each line;
                                      stdout: for each line an empty one, or what vLLM said was wrong
       check_arguments.py --list      stdout: the options of ``vllm serve``, one JSON object a line

``arguments`` is what follows ``vllm serve``. The parser sees them as they are. Where ``model`` is given, a folder, the
configuration is made too, with four things put in: that folder for the model, ``draft`` for a draft, no revision, which
folders have none, and ``defaults`` for what the line leaves to the hardware and the checkpoint.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:  # where 0.33 has them
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args

TAKES = {
    "int": "int", "float": "float", "human_readable_int": "size", "human_readable_int_or_auto": "size",
    "loads": "json", "parse_dataclass": "json",
}  # fmt: skip
LONGEST = 400


def main() -> None:
    """Answer every line, or list the options."""
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    if "--list" in sys.argv[1:]:
        for option in options(parser):
            print(json.dumps(option))
        return
    for line in sys.stdin:
        print(fault(parser, json.loads(line)).replace("\n", " ")[:LONGEST], flush=True)


def fault(parser: FlexibleArgumentParser, line: dict[str, Any]) -> str:
    """What vLLM says against these arguments; nothing when it takes them."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            found = parser.parse_args(line["arguments"])
            validate_parsed_serve_args(found)
            if "model" in line:
                configure(found, line)
    except SystemExit:
        return errors.getvalue().rpartition("error: ")[2].strip() or "refused without a word"
    except Exception as error:  # noqa: BLE001 whatever vLLM raises is what it says
        return str(error) or type(error).__name__
    return ""


def configure(found: argparse.Namespace, line: dict[str, Any]) -> None:
    """Make the engine's configuration of a parsed line."""
    found.model, found.revision = line["model"], None
    for name, value in line["defaults"].items():
        if getattr(found, name) in {None, "auto"}:
            setattr(found, name, value)
    if found.speculative_config and "model" in found.speculative_config:
        found.speculative_config = {**found.speculative_config, "model": line["draft"]}
    before = dict(os.environ)
    try:
        AsyncEngineArgs.from_cli_args(found).create_engine_config()
    finally:
        os.environ.clear()
        os.environ.update(before)


def options(parser: FlexibleArgumentParser) -> Iterator[dict[str, Any]]:
    """Every option once: its long names, what it takes, the values it is limited to."""
    known: dict[int, tuple[argparse.Action, list[str]]] = {}
    for name, action in parser._option_string_actions.items():  # noqa: SLF001 the parser tells it in no other way
        if name.startswith("--"):
            known.setdefault(id(action), (action, []))[1].append(name)
    for action, names in known.values():
        choices = {"choices": sorted(str(one) for one in action.choices)} if action.choices else {}
        yield {"names": sorted(names), "takes": takes(action), **choices}


def takes(action: argparse.Action) -> str:
    """What follows an option: nothing, switch (nothing, and there is an opposite), words, or a value of a type."""
    if action.nargs == 0:
        return "switch" if isinstance(action, argparse.BooleanOptionalAction) else "nothing"
    if action.nargs in {"+", "?"}:
        return "words"
    kind = getattr(action.type, "__name__", "str")
    if kind == "_optional_type":
        inner = [cell.cell_contents for cell in action.type.__closure__]  # type: ignore[union-attr]
        kind = getattr(inner[0], "__name__", "str") if inner else "str"
    return TAKES.get(kind, "text")


if __name__ == "__main__":
    main()
