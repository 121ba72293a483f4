"""What is in an image and how it was made, from its record and the locks: CycloneDX and in-toto documents, as data."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any

from packaging.utils import parse_wheel_filename

from builder import __version__
from builder.bases import Base, Bases
from builder.durable import sha256_file
from builder.image_inputs import EXPORT, context_files
from builder.image_record import ImageRecord
from builder.manifest import Manifest
from builder.provenance import ENGINE_BUILD, digest_set, purl, slsa_statement
from builder.stacks import BuildStackFile, Stack

# names only, under which others can tell these documents apart; nothing is fetched from there
BUILD_TYPE = "https://enginefarm.dev/image/v1"
_STANDIN = "https://enginefarm.dev/stand-in/v1"

Document = dict[str, Any]


def bill_of_materials(record: ImageRecord, stack: Stack, bases: Bases) -> Document:
    """Describe an image in CycloneDX 1.6, by nothing but the arguments: no clock, no chance.

    The packages inside the base are not known here; the composition says that the list is incomplete.
    """
    image, base = _image(record, stack), _base(record, bases.get(stack.spec.image.base))
    wheels = _wheels(record, stack)
    inside = [base, *(wheel for wheel in wheels if wheel["scope"] == "required")]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{BUILD_TYPE}/{record.digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(bases.source_date_epoch, timezone.utc).isoformat(),
            "tools": {"components": [{"type": "application", "name": "enginefarm", "version": __version__}]},
            "component": image,
        },
        "components": [base, *wheels],
        "dependencies": [{"ref": image["bom-ref"], "dependsOn": [one["bom-ref"] for one in inside]}],
        "compositions": [{"aggregate": "incomplete", "assemblies": [base["bom-ref"]]}],
    }


def provenance_statement(record: ImageRecord, stack: Stack, bases: Bases) -> Document:
    """State how an image was made: an in-toto statement with SLSA provenance. It holds no time and no place."""
    return slsa_statement(
        subject=[{"name": record.tag.rpartition(":")[0], "digest": digest_set(record.digest)}],
        build_type=BUILD_TYPE,
        external={"stack": stack.name, "lock": stack.lock_path.name, "platform": record.platform},
        internal={"export": EXPORT, "source_date_epoch": bases.source_date_epoch, "network": "none"},
        dependencies=_dependencies(record, stack, bases),
        version=__version__,
    )


def engine_materials(manifest: Manifest) -> Document:
    """Describe in CycloneDX 1.6 what built an engine, by nothing but its manifest: no clock, no chance."""
    stack, engine = manifest.stack, manifest.engine
    system, _, machine = stack.platform.partition("/")
    packages = [_package(pin) for pin in stack.packages]
    image = [] if stack.image is None else [_stack_image(stack.name, stack.image, stack.platform)]
    facts = {
        "cuda": stack.cuda,
        "job": manifest.job,
        "key": manifest.key,
        "lock-sha256": stack.lock_sha256,
        "onnx-sha256": manifest.onnx.sha256,
        "stack": stack.name,
        "tensorrt": stack.tensorrt,
    }
    name = f"{ENGINE_BUILD}/{engine.sha256}/{manifest.key}"
    reference = f"engine:sha256:{engine.sha256}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created.isoformat(),
            "tools": {"components": [{"type": "application", "name": "enginefarm", "version": manifest.farm_version}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": reference,
                "name": manifest.job,
                "version": manifest.key,
                "description": manifest.recipe.description,
                "licenses": [{"license": {"name": manifest.recipe.licence}}],
                "hashes": [{"alg": "SHA-256", "content": engine.sha256}],
                "properties": _properties(facts | {"machine": machine, "system": system}),
            },
        },
        "components": [*image, *packages],
        "dependencies": [{"ref": reference, "dependsOn": [one["bom-ref"] for one in (*image, *packages)]}],
        # packages that the image holds besides, and what the engine took from TensorRT, are not known
        "compositions": [{"aggregate": "incomplete", "assemblies": [reference]}],
    }


def _stack_image(name: str, digest: str, platform: str) -> Document:
    url = _oci(name, digest, platform, {})
    return {"type": "container", "bom-ref": url, "name": name, "version": digest, "purl": url}


def _package(pin: str) -> Document:
    name, at, place = pin.partition(" @ ")
    if at:
        url = purl("generic", name, place.rpartition("/")[2], {"download_url": place})
        return {"type": "library", "bom-ref": url, "name": name, "purl": url}
    name, _, version = pin.partition("==")
    url = purl("pypi", name, version)
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _image(record: ImageRecord, stack: Stack) -> Document:
    url = _oci(stack.name, record.digest, record.platform, {"tag": record.tag.rpartition(":")[2]})
    spec = stack.spec
    facts = {
        "confirmed": _yes(spec.confirmed),
        "lock": stack.lock_path.name,
        "lock-sha256": stack.lock_sha256,
        "platform": record.platform,
        "python": record.python,
        "stack": stack.name,
        "stand-in": _yes(record.standin),
    }
    if isinstance(spec, BuildStackFile):
        facts |= {"cuda": spec.cuda, "tensorrt": spec.tensorrt}
    return {
        "type": "container",
        "bom-ref": url,
        "name": record.tag.rpartition(":")[0],
        "version": record.digest,
        "description": spec.title,
        "purl": url,
        "properties": _properties(facts),
    }


def _base(record: ImageRecord, base: Base) -> Document:
    if record.standin:
        facts = {"digest": record.base, "stand-in-for": base.pinned}
        return {
            "type": "operating-system",
            "bom-ref": _base_uri(record, base),
            "name": _suite(base),
            "properties": _properties(facts),
        }
    repository, _, tag = base.ref.rpartition(":")
    uri = _base_uri(record, base)
    facts = {"confirmed": _yes(base.confirmed), "pinned": base.pinned, "source": base.source}
    return {
        "type": "container",
        "bom-ref": uri,
        "name": repository,
        "version": tag,
        "purl": uri,
        "properties": _properties(facts),
    }


def _base_uri(record: ImageRecord, base: Base) -> str:
    if record.standin:
        return f"{_STANDIN}/{_suite(base)}@{record.base}"
    repository, _, tag = base.ref.rpartition(":")
    name = repository.rpartition("/")[2]
    return _oci(name, record.base, record.platform, {"repository_url": repository, "tag": tag})


def _suite(base: Base) -> str:
    return base.standin.suite if base.standin is not None else "unknown"


def _wheels(record: ImageRecord, stack: Stack) -> list[Document]:
    # what no line of the lock asks for took part in the build and is not in the image: pip
    urls = _urls(record, stack)
    locked = {digest for one in stack.requirements(record.python) for digest in one.hashes}
    found = []
    for file, sha256 in sorted(record.wheels.items()):
        name, version, _, _ = parse_wheel_filename(file)
        url = _wheel_purl(file, sha256, urls.get(sha256))
        facts = {"wheel": file} | ({"url": urls[sha256]} if sha256 in urls else {})
        found.append(
            {
                "type": "library",
                "bom-ref": url,
                "name": str(name),
                "version": str(version),
                "scope": "required" if sha256 in locked else "excluded",
                "hashes": [{"alg": "SHA-256", "content": sha256}],
                "purl": url,
                "properties": _properties(facts),
            }
        )
    return found


def _urls(record: ImageRecord, stack: Stack) -> dict[str, str]:
    """Map digests of parts that no index has to where they come from."""
    direct = [one for one in stack.requirements(record.python) if one.url is not None]
    return {digest: str(one.url) for one in direct for digest in one.hashes}


def _dependencies(record: ImageRecord, stack: Stack, bases: Bases) -> list[Document]:
    urls = _urls(record, stack)
    base = {"uri": _base_uri(record, bases.get(stack.spec.image.base)), "digest": digest_set(record.base)}
    wheels: list[Document] = []
    for file, sha256 in sorted(record.wheels.items()):
        place = {"downloadLocation": urls[sha256]} if sha256 in urls else {}
        uri = _wheel_purl(file, sha256, urls.get(sha256))
        wheels.append({"name": file, "uri": uri, "digest": {"sha256": sha256}, **place})
    folder = f"images/{stack.folder.name}"
    files = [
        {"name": f"{folder}/{path.name}", "digest": {"sha256": sha256_file(path)}}
        for path in context_files(stack.folder)
    ]
    return [base, *wheels, *files]


def _wheel_purl(file: str, sha256: str, url: str | None) -> str:
    name, version, _, _ = parse_wheel_filename(file)
    if url is None:
        return purl("pypi", str(name), str(version))
    return purl("generic", str(name), str(version), {"checksum": f"sha256:{sha256}", "download_url": url})


def _oci(name: str, digest: str, platform: str, qualifiers: dict[str, str]) -> str:
    return purl("oci", name, digest, {"arch": platform.partition("/")[2], **qualifiers})


def _properties(facts: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"enginefarm:{name}", "value": value} for name, value in sorted(facts.items())]


def _yes(value: bool) -> str:  # noqa: FBT001
    return "true" if value else "false"
