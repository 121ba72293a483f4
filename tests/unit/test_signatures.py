"""Signatures that lie in a folder beside what they are of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from builder.errors import Reason
from builder.keys import KeyPair
from builder.signatures import check_folder, sign_in_folder
from tests.artifacts import refusal
from tests.published import MODEL, NOW, key_pair, parcel, policy_for, signer_of


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("farm"))


@pytest.fixture
def folder(tmp_path: Path, farm: KeyPair) -> Path:
    """Make the folder of a signed engine."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for title, content in parcel().files.items():
        (folder / title).write_bytes(content)
    sign_in_folder(folder, signer_of(farm))
    return folder


def test_what_was_signed_in_a_folder_is_trusted_there(folder: Path, farm: KeyPair) -> None:
    (folder / "trust.json").write_text(json.dumps({}), encoding="utf-8")
    model, trusted = check_folder(folder, policy_for(farm), NOW)
    assert model == MODEL
    assert trusted is not None
    assert trusted.signer == farm.name


@pytest.mark.parametrize("name", ["0.sigstore.json", "manifest.json", "model.plan", "more"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_pipes_and_links_are_not_waited_for(folder: Path, farm: KeyPair, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    error = refusal(lambda: check_folder(folder, policy_for(farm), NOW))
    assert error.reason is (Reason.ARTIFACT_INVALID if name == "manifest.json" else Reason.NAME_UNSAFE)
    assert refusal(lambda: check_folder(folder, policy_for(farm), NOW, MODEL)).reason is Reason.NAME_UNSAFE
