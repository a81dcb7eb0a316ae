"""Write requirements/*.txt: every version pinned, every file by its hash, no download address.

usage: python -m hack.lock
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "operator": ["--extra", "operator"],
    "router": ["--extra", "router", "--extra", "otel"],
    "caller": ["--extra", "caller"],
    "compile": ["--group", "pyproject.toml:compile"],
    "bench": ["--group", "pyproject.toml:bench"],
    "bench-litellm": ["--group", "pyproject.toml:bench-litellm"],
    "dev": ["--group", "dev", "--extra", "operator", "--extra", "router", "--extra", "otel"],
}
OPTIONS = ["--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
SILENCE = ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"]


def main() -> None:
    """Resolve each target of pyproject.toml."""
    uv = Path(sys.executable).with_name("uv")
    for name, selection in TARGETS.items():
        output = f"requirements/{name}.txt"
        # These groups stand alone; the others come with what the project itself depends on.
        source = [] if name.startswith(("bench", "compile")) else ["pyproject.toml"]
        command = [str(uv), "pip", "compile", *OPTIONS, *SILENCE, *source, *selection, "-o", output]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"wrote {output}")


if __name__ == "__main__":
    main()
