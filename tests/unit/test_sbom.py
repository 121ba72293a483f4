"""Bill of materials and provenance: complete, the same each time, and committed as they are."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from builder import sbom
from builder.bases import Base, Bases, Standin
from builder.image_record import ImageRecord, LayerSize
from builder.sbom import bill_of_materials, provenance_statement
from builder.stacks import Stack, load_stacks

SNAPSHOTS = Path(__file__).parents[1] / "data" / "snapshots"
HEX = {name: f"{number:064x}" for number, name in enumerate(("image", "base", "cpu", "libs", "old", "pip", "index"), 1)}
URL = "https://pypi.example.org/trt-libs/trt_libs-10.1-py3-none-manylinux_2_28_x86_64.whl"
WHEELS = {
    "pip-26.1-py3-none-any.whl": HEX["pip"],
    "Torch_Thing-2.1+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": HEX["cpu"],
    "trt_libs-10.1-py3-none-manylinux_2_28_x86_64.whl": HEX["libs"],
}
LOCK = f"""\
torch-thing==2.1+cpu \\
    --hash=sha256:{HEX["cpu"]} \\
    --hash=sha256:{"f" * 64}
trt-libs @ {URL} \\
    --hash=sha256:{HEX["libs"]}
old-thing==1.0 ; python_full_version < '3.11' \\
    --hash=sha256:{HEX["old"]}
"""
STACK = """\
name = "trt10"
title = "TensorRT 10 on CUDA 13"
role = "build"
family = "trt10"
import_name = "tensorrt_bindings"
tensorrt = "10.1"
cuda = "13.2"
platform = "linux/amd64"
python = ["3.11"]
needs_gpu = true
confirmed = false
installed_mib = 100
sms = ["8.6"]
grouping = "each"
precisions = ["fp16"]
[image]
base = "slim"
budget_mib = 100
"""
BASE = Base(
    ref="docker.io/library/python:3.11-slim",
    digest=f"sha256:{HEX['index']}",
    platforms=["linux/amd64"],
    python="3.11",
    confirmed=True,
    source="somebody pins it",
    standin=Standin(suite="bookworm", python="3.11", variant="essential", include=["python3-minimal"]),
)


@dataclass(frozen=True)
class Image:
    """A built image, as far as it is known."""

    record: ImageRecord
    stack: Stack
    bases: Bases

    def bom(self) -> dict[str, Any]:
        return bill_of_materials(self.record, self.stack, self.bases)

    def provenance(self) -> dict[str, Any]:
        return provenance_statement(self.record, self.stack, self.bases)

    def with_record(self, **changes: Any) -> Image:
        return replace(self, record=self.record.model_copy(update=changes))


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    monkeypatch.setattr(sbom, "__version__", "1.2.3")
    folder = tmp_path / "images" / "trt10"
    folder.mkdir(parents=True)
    (folder / "stack.toml").write_text(STACK)
    (folder / "requirements.lock").write_text(LOCK)
    (folder / "requirements.in").write_text("trt-libs\n")
    record = ImageRecord(
        stack="trt10",
        variant=None,
        tag="enginefarm/trt10:0123456789abcdef",
        inputs="0123456789abcdef" * 4,
        digest=f"sha256:{HEX['image']}",
        config_digest=f"sha256:{'c' * 64}",
        platform="linux/amd64",
        base=f"sha256:{HEX['base']}",
        standin=False,
        python="3.11",
        layers=[LayerSize(made_by="COPY", digest=f"sha256:{'d' * 64}", size=1)],
        wheels=WHEELS,
        checked={"ok": True},
    )
    bases = Bases(source_date_epoch=1767225600, bases={"slim": BASE}, drop=())
    return Image(record=record, stack=load_stacks(tmp_path / "images")["trt10"], bases=bases)


def named(components: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [one for one in components if one["name"] == name]
    return found


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in component["properties"]}


@pytest.mark.parametrize(("name", "make"), [("sbom", Image.bom), ("provenance", Image.provenance)])
@pytest.mark.parametrize("standin", [False, True], ids=["pinned", "stand-in"])
def test_documents_are_as_committed(
    image: Image, name: str, make: Callable[[Image], dict[str, Any]], standin: bool
) -> None:
    said = json.dumps(make(image.with_record(standin=standin)), indent=2) + "\n"
    path = SNAPSHOTS / f"{name}-{'standin' if standin else 'pinned'}.json"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8"), "UPDATE_SNAPSHOTS=1 make test writes the new text"


def test_the_serial_number_is_that_of_the_image(image: Image) -> None:
    other = image.with_record(digest=f"sha256:{'e' * 64}")
    assert image.bom()["serialNumber"] == image.bom()["serialNumber"] != other.bom()["serialNumber"]
    assert uuid.UUID(image.bom()["serialNumber"]).version == 5


def test_the_time_is_that_of_the_bases(image: Image) -> None:
    assert image.bom()["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"
    assert "2026" not in json.dumps(image.provenance()).replace("1767225600", "")


def test_a_wheel_of_an_index_has_name_version_and_hash(image: Image) -> None:
    wheel = named(image.bom()["components"], "torch-thing")
    assert wheel["purl"] == "pkg:pypi/torch-thing@2.1%2Bcpu"
    assert wheel["version"] == "2.1+cpu"
    assert wheel["hashes"] == [{"alg": "SHA-256", "content": HEX["cpu"]}]


def test_a_part_that_no_index_has_says_where_it_is_from(image: Image) -> None:
    wheel = named(image.bom()["components"], "trt-libs")
    assert wheel["purl"] == f"pkg:generic/trt-libs@10.1?checksum=sha256:{HEX['libs']}&download_url={URL}"
    sources = image.provenance()["predicate"]["buildDefinition"]["resolvedDependencies"]
    (source,) = [one for one in sources if one["digest"]["sha256"] == HEX["libs"]]
    assert source["downloadLocation"] == URL


def test_what_only_installs_is_not_said_to_be_inside(image: Image) -> None:
    bom = image.bom()
    pip = named(bom["components"], "pip")
    assert pip["scope"] == "excluded"
    assert {one["scope"] for one in bom["components"] if one["type"] == "library" and one != pip} == {"required"}
    assert pip["bom-ref"] not in bom["dependencies"][0]["dependsOn"]


def test_every_reference_is_defined_once(image: Image) -> None:
    bom = image.bom()
    refs = [bom["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bom["components"])]
    used = {ref for one in bom["dependencies"] for ref in (one["ref"], *one["dependsOn"])}
    assert len(refs) == len(set(refs))
    assert used | set(bom["compositions"][0]["assemblies"]) <= set(refs)


def test_a_pinned_base_is_named_by_digest(image: Image) -> None:
    base = image.bom()["components"][0]
    where = "arch=amd64&repository_url=docker.io/library/python&tag=3.11-slim"
    assert (base["type"], base["purl"]) == ("container", f"pkg:oci/python@sha256%3A{HEX['base']}?{where}")
    assert properties(base)["enginefarm:pinned"] == BASE.pinned


def test_a_stand_in_is_named_by_suite(image: Image) -> None:
    base = image.with_record(standin=True).bom()["components"][0]
    assert (base["type"], base["name"]) == ("operating-system", "bookworm")
    assert properties(base)["enginefarm:digest"] == f"sha256:{HEX['base']}"
    assert "purl" not in base


def test_the_image_says_whether_its_pins_are_confirmed(image: Image) -> None:
    component = image.bom()["metadata"]["component"]
    assert properties(component)["enginefarm:confirmed"] == "false"
    assert component["version"] == image.record.digest
    assert component["purl"].startswith(f"pkg:oci/trt10@sha256%3A{HEX['image']}?")


def test_provenance_names_the_image_and_all_it_is_made_of(image: Image) -> None:
    statement = image.provenance()
    build = statement["predicate"]["buildDefinition"]
    digests = {one["digest"]["sha256"] for one in build["resolvedDependencies"]}
    names = {one.get("name") for one in build["resolvedDependencies"]}
    assert statement["subject"] == [{"name": "enginefarm/trt10", "digest": {"sha256": HEX["image"]}}]
    assert {HEX["base"], *WHEELS.values(), image.stack.lock_sha256} <= digests
    assert {"images/trt10/stack.toml", "images/trt10/requirements.lock"} <= names
    assert "images/trt10/requirements.in" not in names


def test_provenance_says_what_was_asked_for(image: Image) -> None:
    build = image.provenance()["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"stack": "trt10", "lock": "requirements.lock", "platform": "linux/amd64"}
    assert build["internalParameters"]["network"] == "none"
    assert build["internalParameters"]["source_date_epoch"] == 1767225600
