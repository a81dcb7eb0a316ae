"""hack/cluster without a cluster: names, keys, what is missing, what is rendered."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hack.cluster import commands, config, doctor, images, layout, processes, progress
from hack.cluster.doctor import Package, Reason
from hack.cluster.layout import ClusterError, Layout

TOOLS = Package("some-tools", "some-tool", (1, 6))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    """A cluster's folder with the certificates that the rendering reads."""
    made = Layout("demo", tmp_path / "fl-12345678-demo")
    made.pki.mkdir(parents=True)
    for name in ("ca", "admin", "controller-manager", "scheduler", "kubelet", "proxy"):
        for end in ("crt", "key"):
            (made.pki / f"{name}.{end}").write_text(f"{name} {end}")
    return made


def program(folder: Path, name: str, says: str) -> None:
    """A program that prints one line."""
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


def texts(reasons: list[Reason]) -> str:
    return "\n".join(reason.text for reason in reasons)


def test_a_sockets_path_fits_into_107_bytes_for_the_longest_name() -> None:
    assert len(str(layout.layout("a" * 16).containerd_socket)) < 107 - len("/containerd.sock.ttrpc")


@pytest.mark.parametrize("name", ["", "a" * 17, "A", "../x", "-a", "a-", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="1 to 16 of a-z"):
        layout.layout(name)


def test_two_working_copies_have_two_clusters_of_one_name() -> None:
    first, second = layout.layout("demo", Path("/a")), layout.layout("demo", Path("/b"))
    assert first.state != second.state


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"FAIRLEAD_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/fairlead"),
        ({"FAIRLEAD_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/fairlead"),
    ],
)
def test_the_cache_lies_where_the_environment_says(env: dict[str, str], expected: str) -> None:
    assert layout.cache_root(env) == Path(expected)


def test_the_key_of_a_build_changes_with_its_sources(tmp_path: Path) -> None:
    here = tmp_path / "cluster"
    shutil.copytree(layout.HERE / "tools", here / "tools")
    shutil.copy(layout.HERE / "gobuild.py", here)
    before = layout.sources_key(here)
    assert before == layout.sources_key(layout.HERE)
    with (here / "tools" / "kube" / "main.go").open("a") as source:
        source.write("// another\n")
    assert layout.sources_key(here) != before


def test_a_missing_program_is_named_with_its_package(programs: Path) -> None:
    assert programs.is_dir()
    said = texts(doctor.packages("node"))
    assert "containerd is missing: apt-get install containerd (at least 1.6)" in said
    assert "nsenter is missing: apt-get install util-linux (at least 2.38)" in said
    assert "curl is missing: apt-get install curl (at least 7.88)" in said.splitlines()


def test_a_plane_needs_no_container_runtime(programs: Path) -> None:
    assert programs.is_dir()
    assert "containerd" not in texts(doctor.packages("plane"))


def test_an_old_program_is_named_with_both_versions(programs: Path) -> None:
    program(programs, "runc", "runc version 1.0.3+ds1")
    said = texts(doctor.packages("node"))
    assert "runc is version 1.0.3, at least 1.1 is needed: apt-get install runc" in said.splitlines()
    program(programs, "runc", "runc version 1.1.5+ds1")
    assert "runc" not in texts(doctor.packages("node"))


def test_what_dpkg_says_counts_before_what_the_program_says(programs: Path) -> None:
    program(programs, "some-tool", "version unknown")
    assert doctor.version_of(TOOLS) == ()
    program(programs, "dpkg-query", "4:1.12.0-3")
    assert doctor.version_of(TOOLS) == (1, 12, 0)


def test_what_only_tests_need_is_a_note_and_stops_nothing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TEST_PACKAGES", (doctor.Package("postgresql", f"{programs}/*/bin/postgres", (13,)),))
    assert "postgresql" in " ".join(doctor.notes())
    assert "postgresql" not in texts(doctor.packages("node"))
    for version in ("9", "15"):
        (programs / version / "bin").mkdir(parents=True)
        program(programs / version / "bin", "postgres", f"postgres (PostgreSQL) {version}.4")
    assert doctor.tests_lack() == []


def test_a_python_without_headers_compiles_nothing_and_is_told_to_tests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TEST_PACKAGES", ())
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    assert texts(doctor.tests_lack()) == "Python has no headers (Python.h): apt-get install python3-dev"
    assert "for some tests Python has no headers" in " ".join(doctor.notes())
    (tmp_path / "Python.h").touch()
    assert doctor.tests_lack() == []


def test_a_library_is_found_wherever_the_machine_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", (Package("libnuma1", f"{tmp_path}/*/libnuma.so.1"),))
    assert texts(doctor.packages("node")) == f"{tmp_path}/*/libnuma.so.1 is missing: apt-get install libnuma1"
    (tmp_path / "x86_64-linux-gnu").mkdir()
    (tmp_path / "x86_64-linux-gnu" / "libnuma.so.1").touch()
    assert doctor.packages("node") == []


def test_an_old_go_is_named(programs: Path) -> None:
    assert "go is missing: install Go 1.26 or newer" in texts(doctor.go())
    program(programs, "go", "go version go1.25.9 linux/amd64")
    assert "go is version 1.25.9, at least 1.26 is needed" in texts(doctor.go())
    program(programs, "go", "go version go1.26.8 linux/amd64")
    assert doctor.go() == []


def test_only_what_apt_has_new_enough_is_installed(programs: Path) -> None:
    log = programs / "log"
    program(programs, "apt-cache", "  Candidate: 1.5.0-1")
    (programs / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (programs / "apt-get").chmod(0o755)
    refused = doctor.install([Reason("", TOOLS), Reason("", Package("other-tools", "other")), Reason("no package")])
    assert refused == ["some-tools: apt has 1.5.0, at least 1.6 is needed: add a newer Debian release to apt"]
    assert log.read_text() == "install --yes --no-install-recommends other-tools\n"


def test_without_root_the_remedy_is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert texts(doctor.root()) == "uid 1000 may not make namespaces: run as root"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/tmp/x", "tmpfs"), ("/var/tmpx", "ext4"), ("/var", "ext4"), ("/home/a", "xfs")],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    mounts = "none / overlay rw 0 0\n/dev/a / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\n/dev/b /home xfs rw 0 0\n"
    assert doctor.filesystem(Path(path), mounts) == kind


def test_a_state_folder_in_memory_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "filesystem", lambda _path, _mounts: "tmpfs")
    assert texts(doctor.free_disk(Path("/var/tmp"), 0)) == (
        "/var/tmp is on tmpfs, and containers' overlays need a disk (ext4, xfs): mount one there"
    )


def test_a_full_disk_is_named_with_what_it_has_and_what_is_needed(tmp_path: Path) -> None:
    assert "are needed: free some" in texts(doctor.free_disk(tmp_path / "absent" / "deeper", 1 << 60))


def test_memory_is_judged_by_what_is_available() -> None:
    assert doctor.memory("node", "MemTotal: 9 kB\nMemAvailable:    4194304 kB\n") == []
    assert "3.0 GiB of memory are available, 4 GiB are needed" in texts(
        doctor.memory("node", "MemAvailable:    3145728 kB\n")
    )


def test_missing_cgroup_controllers_are_named(tmp_path: Path) -> None:
    for name in ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    assert "cgroup controllers blkio, pids are not under" in texts(doctor.cgroups(tmp_path))
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory\n")
    assert "cgroup controllers pids are not under" in texts(doctor.cgroups(tmp_path))


def test_up_on_a_machine_that_lacks_something_says_what_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(layout, "STATE_ROOT", tmp_path)
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "reasons", lambda _kind, **_options: [Reason("runc is missing: …")])
    assert commands.main(["up", "--cluster", "local", "--name", "never"]) == 1
    said = capsys.readouterr()
    assert "this machine lacks what a local cluster needs:\n  - runc is missing: …\n" in said.err
    assert said.out == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_status_of_a_cluster_that_is_not_there_says_how_to_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["status", "--name", "never"]) == 1
    assert "cluster never is not there: python3 hack/cluster up --name never" in capsys.readouterr().err


def test_the_current_cluster_is_never_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["down", "--cluster", "current"]) == 0
    assert "not ours to end" in capsys.readouterr().err


def test_the_current_cluster_is_checked_and_named(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = '#!/bin/sh\n[ "$1" = config ] && echo prod || echo \'{"serverVersion": {"gitVersion": "v1.33.1"}}\'\n'
    (programs / "kubectl").write_text(script)
    (programs / "kubectl").chmod(0o755)
    assert commands.main(["up", "--cluster", "current"]) == 0
    said = capsys.readouterr()
    assert said.err == "context prod answers: Kubernetes v1.33.1\n"
    assert said.out.startswith("export KUBECONFIG=")


@pytest.mark.parametrize(
    ("docker", "remedy"),
    [(None, "docker is not on PATH"), ("exit 1", "no Docker daemon answers")],
)
def test_kind_without_docker_is_one_clear_line(programs: Path, docker: str | None, remedy: str) -> None:
    for name in ("bash", "dirname", "timeout"):
        found = shutil.which(name, path=os.defpath)
        assert found is not None
        (programs / name).symlink_to(found)
    program(programs, "kind", "kind")
    if docker:
        (programs / "docker").write_text(f"#!/usr/bin/env bash\n{docker}\n")
        (programs / "docker").chmod(0o755)
    run = subprocess.run(
        ["bash", str(layout.HERE / "kind.sh"), "up"], capture_output=True, text=True, check=False, timeout=30
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (1, "", 1)
    assert remedy in run.stderr


def test_the_program_runs_from_any_folder_without_installation(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(layout.HERE), "--help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert (run.returncode, "doctor" in run.stdout) == (0, True)


def test_a_plane_has_no_files_of_a_node(place: Layout) -> None:
    plane, node = config.files(place, "plane"), config.files(place, "node")
    assert plane.items() <= node.items()
    assert {path.removeprefix("cmd/") for path in plane if path.startswith("cmd/")} == set(layout.PLANE_PARTS)
    assert {path.removeprefix("cmd/") for path in node.keys() - plane.keys() if path.startswith("cmd/")} == set(
        layout.NODE_PARTS
    )


def test_the_api_server_issues_tokens_under_the_clusters_own_name(place: Layout) -> None:
    text = config.files(place, "plane")["cmd/kube-apiserver"]
    assert " --service-account-issuer=https://kubernetes.default.svc.cluster.local " in text
    assert " --enable-admission-plugins=NodeRestriction " in text


def test_the_ledgers_volume_is_the_nodes_folder_and_waits_for_any_claim(place: Layout) -> None:
    volume = json.loads(config.files(place, "node")["volume.json"])
    assert volume["metadata"]["name"] == "fairlead-ledger"
    assert volume["spec"]["hostPath"]["path"] == str(place.ledger_volume)
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert "claimRef" not in volume["spec"]


def test_a_written_image_says_its_reference_and_runs_its_entrypoint(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    images.write_image(archive, "localhost/some:1", {"program": b"bytes"}, ["/program"], user="65532:65532")
    assert images.references(archive) == ["localhost/some:1"]
    with tarfile.open(archive) as tar:
        manifest = json.loads(read(tar, "manifest.json"))[0]
        settings = json.loads(read(tar, manifest["Config"]))
        assert settings["config"] == {"Entrypoint": ["/program"], "User": "65532:65532"}
        assert settings["rootfs"]["diff_ids"] == [f"sha256:{manifest['Layers'][0].removesuffix('.tar')}"]


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def test_an_archive_of_oci_form_says_its_reference(tmp_path: Path) -> None:
    index = {"manifests": [{"annotations": {"org.opencontainers.image.ref.name": "localhost/app:1"}}, {}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with tarfile.open(tmp_path / "oci.tar", "w") as tar:
        tar.add(tmp_path / "index.json", "index.json")
    assert images.references(tmp_path / "oci.tar") == ["localhost/app:1"]


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_text("text")
    with pytest.raises(ClusterError, match=r"no\.tar is no image archive"):
        images.references(tmp_path / "no.tar")


def test_an_image_is_imported_again_only_when_its_archive_changed(
    place: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(images, "run_inside", lambda _init, _place, *command: imported.append(Path(command[-1]).name))
    for name, content in (("old.tar", b"1"), ("new.tar", b"2")):
        images.write_image(tmp_path / name, "localhost/app:1", {"program": content}, ["/program"])
    for name in ("old.tar", "old.tar", "new.tar", "old.tar"):
        images.load(1, place, [tmp_path / name])
    assert imported == ["old.tar", "new.tar", "old.tar"]


def test_a_pid_of_another_program_is_not_the_clusters(place: Layout) -> None:
    (place.state / "init.pid").write_text(f"{os.getpid()}\n")
    assert processes.holder(place) is None
    assert processes.parts(place)[0] == processes.Part("namespaces", None, "ended")


def test_a_process_is_known_by_its_program_and_its_cluster(place: Layout) -> None:
    longer = Layout("demo1", Path(f"{place.state}1"))
    words = ["-c", "import time; time.sleep(60)", str(layout.HERE / "init.sh"), str(longer.state)]
    with subprocess.Popen([sys.executable, *words]) as process:
        longer.state.mkdir()
        for folder in (place.state, longer.state):
            (folder / "init.pid").write_text(f"{process.pid}\n")
        try:
            # Until it has become the program, its command line is this test's.
            assert processes.until(lambda: processes.holder(longer) == process.pid, 10)
            assert processes.holder(place) is None
        finally:
            process.kill()


def test_progress_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert progress.watch(process, "a job", 480) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "a job: 0:00 of at most about 8:00 (less with warm caches)"
    assert said[1].startswith("a job: ended after 0:0")
