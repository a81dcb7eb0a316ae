"""Which vLLM an image has, as far as its reference tells."""

import re

KNOWN = ("0.32", "0.33")
"""Versions that the table is about, oldest first."""

_IMAGE = re.compile(
    r"^(?:.*/)?(?P<name>vllm(?:-openai|-cpu)?[a-z0-9-]*)"  # the last part of the repository
    r":v?(?P<version>[0-9]{1,4}\.[0-9]{1,4})(?![0-9])[A-Za-z0-9_.+-]*(?:@sha256:[0-9a-f]+)?$"
)


def version_of(image: str) -> str | None:
    """Major and minor version of vLLM in an image such as ``vllm/vllm-openai:v0.32.0``, if it is a known one.

    ``None`` where the reference does not tell: another repository (whose tags are its own), no tag, ``latest``,
    ``nightly``, a digest alone, or a version that this release does not know.
    """
    found = _IMAGE.match(image)
    return found["version"] if found and found["version"] in KNOWN else None


def shown(version: str | None) -> str:
    """The version for messages that deny something; every known one where the image does not tell."""
    return f"vLLM {version}" if version else "vLLM " + " or ".join(KNOWN)
