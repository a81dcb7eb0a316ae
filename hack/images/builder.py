"""Builds the images with buildah: no daemon, no registry, nothing of the user's own container storage is touched."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.layout import cache_root
from hack.images import host, recipes
from hack.images.cache import REPOSITORY, BuildError, Progress, alone, key_of, remove, whole
from hack.images.recipes import Bases, Recipe

SUITE = "bookworm"
PACKAGES = "python3,python3-pip,ca-certificates,libstdc++6,libnuma1"
"""Python 3.11 and its pip; the libraries are torch's."""
TOOLCHAIN = f"{PACKAGES},gcc,libc6-dev,libpython3-dev"
"""What a stage needs that compiles."""
OMITTED = ("doc", "man", "locale", "info", "lintian")
APT_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
COLD_SECONDS = 65
KEPT_ARCHIVES = 4
"""Archives of one image that stay, so that switching between branches rebuilds nothing."""
MOST_STORED_MIB = 8192
"""What buildah's storage, which keeps every step of every build, may hold before it is emptied."""
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")
CA_IN_BUILD = "/run/host-ca.crt"


@dataclass(frozen=True, slots=True)
class Built:
    """An image's reference, and the archive that ``ctr images import`` takes."""

    image: str
    archive: Path


@dataclass(frozen=True, slots=True)
class Workshop:
    """Folders below the cache, and buildah set to work in them alone."""

    home: Path

    def buildah(self, *arguments: str) -> str:
        """Run buildah.

        Raises:
            BuildError: it is not installed, or ended with another status than 0.
        """
        needed("buildah")
        temporary = self.home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        storage = ["--root", str(self.home / "storage"), "--runroot", str(self.home / "run")]
        return host.run(["buildah", *storage, *arguments], {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(temporary)})

    def holds(self, image: str) -> bool:
        """Whether buildah's storage has the image."""
        return bool(self.buildah("images", "--quiet", "--filter", f"reference={image}").strip())


def needed(program: str) -> None:
    """Ask for a program.

    Raises:
        BuildError: it is not on PATH.
    """
    if shutil.which(program) is None:
        raise BuildError(f"{program} is not on PATH, so no image was built. Run: apt-get install {program}")


def build(names: list[str], registry: str, base: str | None = None, compiler: str | None = None) -> list[Built]:
    """Build the images of these names unless their archives are there; the archives, in the order of the recipes.

    Raises:
        BuildError: a step did not succeed.
    """
    version = recipes.project_version()
    run, toolchain = base_image("base", PACKAGES), base_image("toolchain", TOOLCHAIN)
    bases = Bases(base or run, compiler or toolchain)
    workshop = Workshop(cache_root() / "images")
    found = [plan(recipe, workshop, registry, version, bases) for recipe in recipes.chosen(names)]
    if all(built.archive.exists() for _, built in found):
        return [built for _, built in found]
    with alone(workshop.home):
        progress = Progress("images", COLD_SECONDS)
        make_room(workshop, progress)
        for recipe, built in found:
            if not built.archive.exists():
                for image, packages in ((run, PACKAGES), (toolchain, TOOLCHAIN)):
                    if image in recipe.built_on(bases):
                        ensure_base(workshop, image, packages, progress)
                make(workshop, recipe, built, bases, progress)
    return [built for _, built in found]


def plan(recipe: Recipe, workshop: Workshop, registry: str, version: str, bases: Bases) -> tuple[Recipe, Built]:
    """The image's reference, and where its archive is or will be."""
    image = recipes.reference(recipe, registry, version)
    return recipe, Built(image, workshop.home / recipes.image_key(recipe, image, bases) / f"{recipe.name}.tar")


def make(workshop: Workshop, recipe: Recipe, built: Built, bases: Bases, progress: Progress) -> None:
    """Build one image and keep its archive; older ones of the same image go."""
    progress.say(built.image)
    with tempfile.TemporaryDirectory(dir=workshop.home) as folder, pip_access(Path(folder)) as access:
        context = Path(folder) / "context"
        context.mkdir()
        recipes.stage(recipe, make_wheel(Path(folder)) if recipe.wheel else None, context)
        arguments = ["--layers", "--build-arg", f"BASE={bases.run}", "--file", str(REPOSITORY / recipe.containerfile)]
        if recipe.compiles:
            arguments += ["--build-arg", f"COMPILER={bases.compile}"]
        workshop.buildah("build", "--quiet", *arguments, *access, "--tag", built.image, str(context))
    with whole(built.archive) as partial:
        # Uncompressed: the archive is read on this machine, and unpacking would cost more than the disk.
        workshop.buildah("push", "--quiet", built.image, f"docker-archive:{partial}:{built.image}")
    for old in surplus(sorted(workshop.home.glob(f"*/{recipe.name}.tar"), key=lambda path: path.stat().st_mtime)):
        remove(old.parent)


def surplus(oldest_first: Sequence[Path]) -> Sequence[Path]:
    """The archives that go."""
    return oldest_first[:-KEPT_ARCHIVES]


def make_wheel(folder: Path) -> Path:
    """The project's wheel, built without a network."""
    dist = folder / "wheel"
    host.run(["env", "-C", str(REPOSITORY), host.venv_program("hatchling"), "build", "-t", "wheel", "-d", str(dist)])
    (wheel,) = dist.glob("*.whl")
    return wheel


@contextmanager
def pip_access(folder: Path) -> Iterator[list[str]]:
    """Arguments that let pip work inside the build as it does on this machine; no layer keeps them."""
    options = host.pip_options([host.venv_program("python"), "-m", "pip"])
    secret = folder / "pip.conf"
    secret.touch(0o600)
    secret.write_text(pip_configuration(options), encoding="utf-8")
    authorities = options.get("cert")
    volume = ["--volume", f"{authorities}:{CA_IN_BUILD}:ro"] if authorities else []
    yield ["--secret", f"id=pip,src={secret}", *volume]


def pip_configuration(options: dict[str, str]) -> str:
    """The pip.conf of the build: where to look, and which certificates to trust; paths of this machine stay out."""
    lines = [f"{name} = {options[name]}" for name in PIP_OPTIONS if name in options]
    trust = [f"cert = {CA_IN_BUILD}"] if "cert" in options else []
    return "\n".join(["[global]", *lines, *trust, ""])


def base_image(name: str, packages: str) -> str:
    """The name of a base image, with a key of what it is made of."""
    return f"localhost/fairlead-{name}:{key_of([SUITE, packages, *OMITTED])}"


def ensure_base(workshop: Workshop, image: str, packages: str, progress: Progress) -> None:
    """Have a base image in buildah's storage: a Debian root made by mmdebstrap."""
    if workshop.holds(image):
        return
    name = image.rpartition("-")[2].replace(":", "-")
    root = workshop.home / name / "root.tar"
    if not root.exists():
        progress.say(f"{name}: Debian {SUITE} with Python 3.11")
        with whole(root) as partial:
            make_root(partial, packages)
    with tempfile.TemporaryDirectory(dir=workshop.home) as folder:
        recipe = Path(folder) / "Containerfile"
        recipe.write_text("FROM scratch\nADD root.tar /\n", encoding="utf-8")
        (Path(folder) / "root.tar").hardlink_to(root)
        workshop.buildah("build", "--quiet", "--tag", image, "--file", str(recipe), folder)


def make_root(target: Path, packages: str) -> None:
    """Write a Debian root as a tar file, from this machine's package sources where they are Debian's."""
    needed("mmdebstrap")
    paths = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in OMITTED]
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={packages}", "--format=tar", *paths]
    host.run([*command, SUITE, str(target), *apt_sources(Path("/etc/os-release"), APT_SOURCES)])


def apt_sources(release: Path, candidates: Sequence[Path]) -> list[str]:
    """The machine's own package sources if it runs the same suite; mmdebstrap has its own for other machines."""
    if not release.exists() or f"VERSION_CODENAME={SUITE}" not in release.read_text(encoding="utf-8").splitlines():
        return []
    return [str(path) for path in candidates if path.exists() and path.stat().st_size][:1]


def make_room(workshop: Workshop, progress: Progress) -> None:
    """Empty buildah's storage when it has grown over many builds; the next one takes its time again."""
    storage = workshop.home / "storage"
    if not storage.exists() or int(host.run(["du", "-s", "-BM", str(storage)]).split("M")[0]) <= MOST_STORED_MIB:
        return
    progress.say(f"more than {MOST_STORED_MIB} MiB in the build storage: it is emptied")
    workshop.buildah("rmi", "--all", "--force")
