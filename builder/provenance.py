"""States how engines and images were made: in-toto statements with SLSA provenance, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

Document = dict[str, Any]

# names only, under which others can tell these documents apart; nothing is fetched from there
ENGINE_BUILD = "https://enginefarm.dev/engine/v1"
_BUILDER = "https://enginefarm.dev/builder/v1"
_STANDIN = "stand-in "


def provenance(manifest: Mapping[str, Any], files: Mapping[str, str]) -> Document:
    """State how an engine was made, by nothing but its manifest: the same engine has the same statement.

    `files`: SHA-256 of every file of the artifact, hex, by title.
    """
    recipe, stack, build = manifest["recipe"], manifest["stack"], manifest["build"]
    statement = slsa_statement(
        subject=[{"name": title, "digest": {"sha256": files[title]}} for title in sorted(files)],
        build_type=ENGINE_BUILD,
        external={
            "job": manifest["job"],
            "recipe": recipe["name"],
            "precision": manifest["precision"]["requested"],
            "stack": stack["name"],
            "target": manifest["target"]["name"],
            "sms": manifest["target"]["sms"],
            "options": build["options"],
        },
        internal={
            "key": manifest["key"],
            "platform": stack["platform"],
            "python": stack["python"],
            "tensorrt": stack["tensorrt"],
            "cuda": stack["cuda"],
            "gpu": _gpu(build["tuned_on"]),
        },
        dependencies=_materials(manifest),
        version=manifest["farm_version"],
    )
    statement["predicate"]["runDetails"]["metadata"] = {
        "invocationId": manifest["key"],
        "finishedOn": manifest["created"],
    }
    return statement


def slsa_statement(
    *,
    subject: list[Document],
    build_type: str,
    external: Document,
    internal: Document,
    dependencies: list[Document],
    version: str,
) -> Document:
    """Put a statement together: what was made, of what kind, as asked, as it came about, of what, by which version."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": build_type,
                "externalParameters": external,
                "internalParameters": internal,
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": _BUILDER, "version": {"enginefarm": version}}},
        },
    }


def purl(kind: str, name: str, version: str, qualifiers: Mapping[str, str] | None = None) -> str:
    """Write a package URL."""
    pairs = sorted((qualifiers or {}).items())
    text = "&".join(f"{key}={quote(value, safe='/:')}" for key, value in pairs)
    return f"pkg:{kind}/{name.lower()}@{quote(version, safe='')}" + (f"?{text}" if text else "")


def digest_set(digest: str) -> dict[str, str]:
    """Turn `sha256:<hex>` into what statements hold."""
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def head_commit(root: Path) -> str | None:
    """Read which Git commit a checkout is at; null where it is none. Changes since then are not seen."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        reference = head.removeprefix("ref: ")
        if reference == head:
            return head
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)


def _materials(manifest: Mapping[str, Any]) -> list[Document]:
    recipe, stack, onnx = manifest["recipe"], manifest["stack"], manifest["onnx"]
    folder = f"recipes/{recipe['name']}"
    found = [*_images(stack)]
    found.append({"name": f"images/{stack['name']}/requirements.lock", "digest": {"sha256": stack["lock_sha256"]}})
    found += [_package(pin) for pin in stack["packages"]]
    if recipe.get("commit") is not None:
        found.append({"name": folder, "digest": {"gitCommit": recipe["commit"]}})
    found.append({"name": "source", **_source(recipe["source"], folder)})
    weights = (recipe["weights_detail"] or {}).get("file")
    if weights is not None:
        found.append({"name": "weights", **_source(weights, folder)})
    found.append({"name": "model.onnx", "digest": {"sha256": onnx["sha256"]}})
    if onnx["external_sha256"] is not None:
        found.append({"name": "model.onnx.data", "digest": {"sha256": onnx["external_sha256"]}})
    found += _caches(manifest["build"]["tuned_on"])
    return found


def _images(stack: Mapping[str, Any]) -> Iterator[Document]:
    architecture = {"arch": stack["platform"].partition("/")[2]}
    if stack["image"] is not None:
        uri = purl("oci", stack["name"], stack["image"], architecture)
        yield {"name": "image", "uri": uri, "digest": digest_set(stack["image"])}
    base = stack.get("image_base")
    if base is not None:
        # not the pinned base then, but one made in its place: it must not pass for that
        label = "stand-in base image" if base.startswith(_STANDIN) else "base image"
        yield {"name": label, "digest": digest_set(base.removeprefix(_STANDIN))}


def _package(pin: str) -> Document:
    name, _, version = pin.partition("==")
    if version:
        return {"name": pin, "uri": purl("pypi", name, version)}
    name, _, url = pin.partition(" @ ")
    return {"name": name, "uri": url}


def _source(source: Mapping[str, Any], folder: str) -> Document:
    """Say where a model or its weights came from, by the fields that there are: a repository, an address, a wheel."""
    digest = {"sha256": source["sha256"]} if source.get("sha256") else {}
    if source.get("repo"):
        # unlike those of other package URLs, these names tell capitals from small letters
        uri = f"pkg:huggingface/{source['repo']}@{source['revision']}#{source['path']}"
        return {"uri": uri, "digest": {"gitCommit": source["revision"], **digest}}
    if source.get("url"):
        return {"uri": source["url"], "digest": digest}
    if source.get("package"):
        name, _, version = source["package"].partition("==")
        return {"uri": f"{purl('pypi', name, version)}#{source['path']}", "digest": digest}
    path = source.get("path") or source.get("entry", "").rpartition(":")[0]
    return {"uri": f"{folder}/{path}", **({"digest": digest} if digest else {})}


def _gpu(tuned_on: Mapping[str, Any] | None) -> Document | None:
    return None if tuned_on is None else {name: tuned_on[name] for name in ("name", "sm", "driver")}


def _caches(tuned_on: Mapping[str, Any] | None) -> Iterable[Document]:
    read = ((tuned_on or {}).get("timing_cache") or {}).get("read") or []
    return [{"name": "timing.cache", "digest": {"sha256": digest}} for digest in read if isinstance(digest, str)]
