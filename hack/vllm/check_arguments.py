"""Show command lines to vLLM's own parser, without starting an engine. Runs with the interpreter of hack/vllm.

stdin: a JSON list of arguments (what follows ``vllm serve``) on each line.
stdout: for each line an empty one, or what vLLM said was wrong.
"""

import contextlib
import io
import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    """Parse every line."""
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    for line in sys.stdin:
        print(fault(parser, json.loads(line)).replace("\n", " "), flush=True)


def fault(parser: FlexibleArgumentParser, arguments: list[str]) -> str:
    """What vLLM says against these arguments; nothing when it takes them."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            validate_parsed_serve_args(parser.parse_args(arguments))
    except SystemExit:
        return errors.getvalue().rpartition("error: ")[2].strip() or "refused without a word"
    except (TypeError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


if __name__ == "__main__":
    main()
