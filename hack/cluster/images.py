"""Images for the real node: written, and loaded into its containerd, without a registry."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hack.cluster.layout import HERE, ClusterError, Layout
from hack.cluster.processes import run_inside
from hack.cluster.progress import say

REFERENCE_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MOST_JSON_BYTES = 4 << 20


def write_image(target: Path, reference: str, files: dict[str, bytes], entrypoint: list[str], user: str = "") -> None:
    """Write an image of one layer with these executable files, in the form that `docker save` writes."""
    layer = _tar(files, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "User": user},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    body = json.dumps(config).encode()
    name, blob = f"{hashlib.sha256(body).hexdigest()}.json", f"{digest}.tar"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": [blob]}]).encode()
    target.write_bytes(_tar({name: body, blob: layer, "manifest.json": manifest}))


def pause_image(target: Path, reference: str) -> None:
    """Compile the process of a pod's sandbox and write its image."""
    program = target.with_suffix(".program")
    command = ["gcc", "-static", "-Os", "-s", "-Wall", "-o", str(program), str(HERE / "pause.c")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if run.returncode:
        raise ClusterError(f"gcc of {HERE / 'pause.c'}: status {run.returncode}: {run.stderr.strip()[-1000:]}")
    write_image(target, reference, {"pause": program.read_bytes()}, ["/pause"], user="65532:65532")
    program.unlink()


def load(init: int, place: Layout, archives: Iterable[Path]) -> None:
    """Import each archive into the node's containerd, except those whose references were last loaded from it."""
    record = place.state / "images.json"
    for archive in archives:
        known = json.loads(record.read_text()) if record.exists() else {}
        loaded = _loaded(archive)
        if loaded and loaded.items() <= known.items():
            say(f"image {', '.join(loaded)}: already there")
            continue
        ctr = ("ctr", "--address", str(place.containerd_socket), "--namespace", "k8s.io")
        run_inside(init, place, *ctr, "images", "import", str(archive.absolute()))
        record.write_text(json.dumps(known | loaded))
        say(f"image {', '.join(loaded) or archive}: loaded")


def _loaded(archive: Path) -> dict[str, str]:
    """Return reference → digest of the archive; nothing where the archive names no reference."""
    names = references(archive)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dict.fromkeys(names, digest)


def references(archive: Path) -> list[str]:
    """Return the image references that an archive of `docker save` or of OCI form carries."""
    try:
        with tarfile.open(archive) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            docker = _read_json(tar, members.get("manifest.json")) or []
            index = _read_json(tar, members.get("index.json")) or {}
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ClusterError(
            f"{archive} is no image archive: {error}; write one with buildah push or docker save"
        ) from error
    tags = [tag for image in docker for tag in image.get("RepoTags") or []]
    notes = [manifest.get("annotations") or {} for manifest in index.get("manifests", [])]
    return sorted({*tags, *(note[key] for note in notes for key in REFERENCE_KEYS if "/" in note.get(key, ""))})


def _read_json(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Any:
    if member is None or (file := tar.extractfile(member)) is None:
        return None
    if member.size > MOST_JSON_BYTES:
        raise ValueError(f"{member.name} has {member.size} bytes, of at most {MOST_JSON_BYTES}")
    return json.loads(file.read())


def _tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return target.getvalue()
