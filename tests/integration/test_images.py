"""Images for real: the same digest everywhere, leaks named, budgets held, parts from mirrors, small disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.docker_engine import DockerEngine
from builder.image_layout import ImageLayout
from builder.image_record import ImageRecord, records
from tests.integration.farm import ROOT, Farm, build_image, share_environments, shared_home

pytestmark = pytest.mark.integration

TOY = """
name = "toy"
title = "Nothing but packaging"
role = "export"
platform = "linux/amd64"
python = ["3.11"]
confirmed = true
installed_mib = 30

[image]
base = "python3.11-bookworm"
budget_mib = 100
"""
CHECK = "import json, packaging\nprint(json.dumps({'ok': True, 'packaging': packaging.__version__}))\n"


@pytest.fixture
def toys(tmp_path: Path, rtx_image: ImageRecord, docker_engine: DockerEngine) -> Iterator[Farm]:
    """A project with one small stack on the shared base."""
    assert rtx_image.standin in {True, False}
    project = tmp_path / "project"
    (project / "recipes").mkdir(parents=True)
    shutil.copytree(ROOT / "images" / "steps", project / "images" / "steps")
    shutil.copy(ROOT / "images" / "bases.toml", project / "images")
    toy = project / "images" / "toy"
    toy.mkdir()
    (toy / "stack.toml").write_text(TOY, encoding="utf-8")
    (toy / "check.py").write_text(CHECK, encoding="utf-8")
    (toy / "prune.txt").write_text("packaging/py.typed # types\n", encoding="utf-8")
    lock = (ROOT / "images" / "trtrtx1.7-cuda13" / "requirements.lock").read_text(encoding="utf-8")
    (toy / "requirements.lock").write_text(_part(lock, "packaging=="), encoding="utf-8")
    (project / "images" / "steps" / "check.py").write_text(CHECK, encoding="utf-8")
    share_environments(tmp_path / "home")
    farm = Farm(project=project, home=tmp_path / "home", executor="docker")
    assert farm.run("schema", "--project", str(project)).returncode == 0
    yield farm
    for path, record in records(shared_home()):
        if record.stack == "toy":
            path.unlink(missing_ok=True)
    for image in docker_engine.client.images.list("enginefarm/toy"):
        for tag in image.tags:
            docker_engine.client.images.remove(tag)


def _part(lock: str, start: str) -> str:
    """Cut one requirement out of a lock."""
    lines = lock.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    last = next(index for index in range(first, len(lines)) if not lines[index].endswith("\\"))
    return "\n".join(lines[first : last + 1]) + "\n"


def _json(farm: Farm, *arguments: str, code: int = 0) -> Any:
    done = farm.run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_two_clones_give_one_digest(toys: Farm, tmp_path: Path, docker_engine: DockerEngine) -> None:
    first = _json(toys, "images", "build", "toy")
    docker_engine.client.images.remove(first["image"])
    clone = tmp_path / "a-clone-with-a-longer-path"
    shutil.copytree(toys.project, clone, copy_function=shutil.copyfile)
    for path in clone.rglob("*"):
        path.chmod(0o700)
    second = _json(replace(toys, project=clone), "images", "build", "toy")
    assert (first["digest"], first["image"]) == (second["digest"], second["image"])
    image = docker_engine.client.images.get(second["image"])
    assert image.labels["org.enginefarm.stack"] == "toy"
    assert "stand-in" in image.labels["org.enginefarm.base"] or not second["standin"]
    assert second["checked"]["packaging"]


def test_an_image_that_is_there_is_not_built_again(toys: Farm) -> None:
    _json(toys, "images", "build", "toy")
    again = toys.run("images", "build", "toy")
    assert again.returncode == 0
    assert "build" not in again.stderr
    listed = _json(toys, "images", "ls")
    assert [(one["stack"], one["image"]["compressed_bytes"] > 0) for one in listed] == [("toy", True)]


def test_a_leaked_time_is_named(toys: Farm) -> None:
    dockerfile = toys.project / "images" / "toy" / "Dockerfile"
    _edit(
        dockerfile,
        "\nFROM enginefarm-base AS enginefarm\n",
        "\nRUN date +%s > /opt/stack/built-at\n\nFROM enginefarm-base AS enginefarm\n",
    )
    verdict = _json(toys, "images", "reproduce", "toy", code=8)
    assert verdict["first"] != verdict["second"]
    difference = verdict["difference"]
    assert (difference["path"], difference["field"]) == ("opt/stack/built-at", "content")
    said = toys.run("images", "reproduce", "toy")
    assert "opt/stack/built-at: content" in said.stdout


def test_a_clean_stack_is_reproduced(toys: Farm) -> None:
    verdict = _json(toys, "images", "reproduce", "toy")
    assert verdict["first"] == verdict["second"]
    assert verdict["difference"] is None


def test_a_budget_is_held(toys: Farm) -> None:
    _edit(toys.project / "images" / "toy" / "stack.toml", "budget_mib = 100", "budget_mib = 1")
    size = _json(toys, "images", "build", "toy")["compressed_bytes"]
    assert toys.run("images", "size", "toy").returncode == 0
    over = toys.run("images", "size", "toy", "--check")
    assert over.returncode == 4
    assert f"{size - (1 << 20)} bytes above its budget of 1 MiB" in over.stderr


def test_a_failing_check_fails_the_build(toys: Farm) -> None:
    (toys.project / "images" / "toy" / "check.py").write_text(
        "import json, sys\nprint(json.dumps({'ok': False, 'problems': ['libtoy.so is missing']}))\nsys.exit(1)\n",
        encoding="utf-8",
    )
    failed = toys.run("images", "build", "toy")
    assert failed.returncode == 5
    assert "image-invalid" in failed.stderr
    assert "libtoy.so is missing" in failed.stderr


def test_a_lock_with_another_hash_is_refused(toys: Farm) -> None:
    lock = toys.project / "images" / "toy" / "requirements.lock"
    lock.write_text("packaging==26.3 --hash=sha256:" + "0" * 64 + "\n", encoding="utf-8")
    failed = toys.run("images", "build", "toy")
    assert failed.returncode == 3
    assert "digest-mismatch" in failed.stderr


def test_the_build_has_no_network(toys: Farm) -> None:
    dockerfile = toys.project / "images" / "toy" / "Dockerfile"
    probe = "RUN python3 -c \"import os; assert os.listdir('/sys/class/net') == ['lo']\""
    _edit(dockerfile, "\nFROM enginefarm-base AS enginefarm\n", f"\n{probe}\n\nFROM enginefarm-base AS enginefarm\n")
    assert _json(toys, "images", "build", "toy")["digest"]


def test_a_disk_that_is_too_small_is_refused_before_work(toys: Farm, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to mount a small disk")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], check=True)
    try:
        failed = replace(toys, home=small / "home").run("images", "build", "toy")
        assert failed.returncode == 5
        assert "disk-full" in failed.stderr
        assert "bytes are missing" in failed.stderr
        assert not (small / "home" / "fetch").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_base_from_a_mirror(
    toys: Farm, tmp_path: Path, registry: str, rtx_image: ImageRecord, docker_engine: DockerEngine
) -> None:
    base = next(
        ImageLayout(folder)
        for folder in shared_home().bases.glob("*")
        if ImageLayout(folder).complete and ImageLayout(folder).digest == rtx_image.base
    )
    _push(base, f"{registry}/library/python", tmp_path)
    bases = toys.project / "images" / "bases.toml"
    text = bases.read_text(encoding="utf-8")
    pinned = text.split('digest = "', 1)[1].split('"', 1)[0]
    bases.write_text(text.replace(pinned, base.digest, 1), encoding="utf-8")
    alone = replace(toys, home=tmp_path / "another-home")
    built = _json(alone, "images", "build", "toy", "--base", "pinned", "--base-registry", registry)
    assert (built["base"], built["standin"]) == (base.digest, False)
    bases.write_text(text.replace(pinned, "sha256:" + "1" * 64, 1), encoding="utf-8")
    refused = replace(toys, home=tmp_path / "third-home").run(
        "images", "build", "toy", "--base", "pinned", "--base-registry", registry
    )
    assert refused.returncode == 5
    assert "base-unavailable" in refused.stderr


def _push(layout: ImageLayout, repository: str, folder: Path) -> None:
    from oras.container import Container
    from oras.provider import Registry

    client, container = Registry(insecure=True), Container(repository)
    manifest = layout.manifest()
    for blob in (manifest["config"], *manifest["layers"]):
        response = client.upload_blob(str(layout.blob(blob["digest"])), container, blob)
        assert response.status_code in {200, 201, 202}, response.text
    content = layout.blob(layout.digest).read_bytes()
    url = f"http://{container.manifest_url(layout.digest)}"
    headers = {"Content-Type": manifest["mediaType"]}
    assert client.do_request(url, "PUT", data=content, headers=headers).status_code == 201


def test_gc_keeps_within_its_budget_and_leaves_others_alone(toys: Farm, docker_engine: DockerEngine) -> None:
    home = toys.home
    for shared in ("envs", "fetch", "bases", "images"):
        # a home of its own: what is shared must stay
        (home / shared).unlink()
    foreign = docker_engine.client.images.get(build_image("trtrtx1.7-cuda13").tag)
    foreign.tag("somebody-elses", "latest")
    container = docker_engine.client.containers.create("somebody-elses:latest", "true", network_mode="none")
    (home / "notes.txt").write_text("mine", encoding="utf-8")
    budget = 600 << 20
    prune = toys.project / "images" / "toy" / "prune.txt"
    tags = []
    try:
        for round_ in range(int(os.environ.get("ENGINEFARM_GC_ROUNDS", "3"))):
            prune.write_text(f"packaging/py.typed # round {round_}\n", encoding="utf-8")
            tags.append(_json(toys, "images", "build", "toy")["image"])
            done = _json(toys, "gc", "--keep-bytes", str(budget))
            assert done["kept_bytes"] <= budget
        assert docker_engine.image(tags[-1]) is not None
        left = _json(toys, "gc", "--keep-bytes", "0")
        assert left["kept_bytes"] == 0
        assert [docker_engine.image(tag) for tag in tags] == [None] * len(tags)
        assert docker_engine.image("somebody-elses:latest") is not None
        assert docker_engine.image(build_image("trtrtx1.7-cuda13").tag) is not None
        container.reload()
        assert (home / "notes.txt").read_text(encoding="utf-8") == "mine"
    finally:
        container.remove()
        docker_engine.client.images.remove("somebody-elses:latest")


def test_stacks_that_a_change_touches(toys: Farm, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=toys.project, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")

    def changed() -> list[str]:
        return [one["stack"] for one in _json(toys, "images", "ls", "--changed-since", "HEAD")]

    assert changed() == []
    (toys.project / "images" / "toy" / "prune.txt").write_text("a # b\n", encoding="utf-8")
    assert changed() == ["toy"]
    unknown = toys.run("images", "ls", "--changed-since", "nowhere")
    assert unknown.returncode == 3
    assert "git knows no revision" in unknown.stderr


def test_the_bill_of_materials_names_what_is_inside(toys: Farm) -> None:
    digest = _json(toys, "images", "build", "toy")["digest"]
    done = toys.run("images", "sbom", "toy")
    document = json.loads(done.stdout)
    assert document["bomFormat"] == "CycloneDX"
    assert any(component["name"] == "packaging" for component in document["components"])
    provenance = json.loads(toys.run("images", "sbom", "toy", "--provenance").stdout)
    assert provenance["subject"][0]["digest"]["sha256"] == digest.removeprefix("sha256:")
