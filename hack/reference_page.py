"""What the generators of reference pages and tables share: write the file, or say whether it differs."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def publish(page: Path, text: Callable[[Path], str], source: str, module: str, arguments: list[str] | None) -> int:
    """Write a file, or with --check compare it; 1 when it differs. ``text`` makes it from the repository's root."""
    parser = argparse.ArgumentParser(description=f"Writes {page} from {source}.")
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the file differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ is, and what the page is made from")
    options = parser.parse_args(arguments)
    wanted, target = text(options.root), options.root / page
    if not options.check:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(wanted, encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{page} differs from {source}: python -m {module} writes it", file=sys.stderr)
    return 1
