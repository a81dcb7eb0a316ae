"""Comparison with the files under tests/golden; ``UPDATE_GOLDEN=1`` rewrites them."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(path: str, text: str) -> None:
    """Compare text with ``tests/golden/<path>``, or write it there when ``UPDATE_GOLDEN`` is set."""
    file = GOLDEN / path
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.is_file(), f"tests/golden/{path} is missing: UPDATE_GOLDEN=1 pytest writes it"
    assert text == file.read_text(encoding="utf-8"), f"tests/golden/{path} differs: UPDATE_GOLDEN=1 writes it"
