"""Where models are: references to registries and folders, and models named alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from builder.errors import Reason
from builder.model_folder import ModelFolder
from builder.places import Located, Talk, full_reference, locate
from builder.registry import Registry
from tests.artifacts import refusal

DIGEST = f"sha256:{'a' * 64}"


def located(text: str) -> Located:
    return locate(text, Talk(cancel=threading.Event(), listen=lambda _: None))


@pytest.mark.parametrize(
    ("text", "model", "name", "version", "pinned"),
    [
        ("ghcr.io/farm/resnet18", "resnet18", "ghcr.io/farm/resnet18", "latest", False),
        ("localhost:5000/resnet18:2", "resnet18", "localhost:5000/resnet18", "2", False),
        (f"ghcr.io/a/b/resnet18@{DIGEST}", "resnet18", "ghcr.io/a/b/resnet18", DIGEST, True),
        (f"ghcr.io/a/resnet18:2@{DIGEST}", "resnet18", "ghcr.io/a/resnet18", DIGEST, True),
        ("oci:/media/usb/resnet18", "resnet18", "oci:/media/usb/resnet18", "latest", False),
        ("oci:/media/a:b/resnet18:2", "resnet18", "oci:/media/a:b/resnet18", "2", False),
        (f"oci:/media/usb/resnet18@{DIGEST}", "resnet18", "oci:/media/usb/resnet18", DIGEST, True),
    ],
)
def test_references(text: str, model: str, name: str, version: str, *, pinned: bool) -> None:
    found = located(text)
    assert (found.model, found.name, found.version, found.pinned) == (model, name, version, pinned)
    assert isinstance(found.place, ModelFolder if text.startswith("oci:") else Registry)
    assert found.shown == (f"{name}@{version}" if pinned else f"{name}:{version}")


def test_a_folder_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("oci:usb/tiny").name == located("oci:tiny").name.replace("/tiny", "/usb/tiny")
    assert located("oci:tiny:1").name == f"oci:{tmp_path}/tiny"


@pytest.mark.parametrize(
    "text",
    [
        "oci:",
        "oci:/media/usb/",
        "oci:/media/..",
        "oci:/media/Tiny",
        "oci:/media/tiny:",
        "oci:/media/tiny:-x",
        "oci:/media/tiny@sha256:1",
        "oci:~nobody.is.called.so/tiny",
        f"oci:/{'a' * 300}",
        f"oci:/{'a/' * 5000}tiny",
        "https://ghcr.io/tiny",
        "ghcr.io/Tiny",
        "ghcr.io/tiny:",
        "tiny",
    ],
)
def test_what_names_nothing(text: str) -> None:
    assert refusal(lambda: located(text)).reason is Reason.REFERENCE_INVALID


def test_a_model_alone_is_in_the_usual_registry() -> None:
    environ = {"ENGINEFARM_REGISTRY": "ghcr.io/farm/"}
    assert full_reference("tiny:1", None, environ) == "ghcr.io/farm/tiny:1"
    assert full_reference("tiny", "oci:/media/usb", environ) == "oci:/media/usb/tiny"
    assert full_reference("other.io/tiny", None, environ) == "other.io/tiny"
    assert full_reference("oci:tiny", None, environ) == "oci:tiny"
    error = refusal(lambda: full_reference("tiny", None, {}))
    assert error.reason is Reason.REFERENCE_INVALID
    assert "ENGINEFARM_REGISTRY" in (error.fix or "")
