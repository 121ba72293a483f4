"""Changes the index of a model in a registry so that two who push at once lose nothing.

No registry can lock a tag, or change one only if nobody else did. So every engine of an index has a tag of its own
beside it, written before the index: whoever writes the index last reads those tags afterwards and adds what is missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from builder import artifact, oci
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.registry import Registry

TAG_LENGTH = 40
"""So that the engines' own tags have room behind it."""

_LONGEST_TAG = 128
_HASH_LENGTH = 8
_ATTEMPTS = 10
_PAUSE_S = 0.05
_BROKEN = frozenset(
    {
        Reason.ARTIFACT_INVALID,
        Reason.ARTIFACT_TOO_NEW,
        Reason.DOWNLOAD_CORRUPT,
        Reason.IDENTITY_MISMATCH,
        Reason.MANIFEST_INVALID,
        Reason.NAME_UNSAFE,
        Reason.SIZE_REFUSED,
    }
)


def marker(tag: str, entry: oci.Document) -> str:
    """Name the tag of an engine beside the index `tag`: readable, and one per place in the index."""
    slot = artifact.slot_of(entry)
    suffix = f"-{hashlib.sha256(chr(0).join(slot).encode()).hexdigest()[:_HASH_LENGTH]}"
    readable = re.sub(r"[^a-zA-Z0-9._-]", "-", slot[0])
    return f"{tag}--{readable}"[: _LONGEST_TAG - len(suffix)] + suffix


class ModelIndexFile:
    """The index of one model under one tag. `sign`, if any, is called with a content before the tag moves to it."""

    def __init__(
        self, registry: Registry, model: str, tag: str, listen: Listener, sign: Callable[[bytes], None] | None
    ) -> None:
        self.where = f"{registry.registry}/{registry.repository}:{tag}"
        self._registry = registry
        self._model = model
        self._tag = tag
        self._listen = listen
        self._sign = sign
        self._markers = re.compile(rf"{re.escape(tag)}--[a-zA-Z0-9._-]+-[0-9a-f]{{{_HASH_LENGTH}}}")

    def read(self) -> artifact.ModelIndex | None:
        """Read it; null where the tag is free.

        Raises:
            EnginefarmError: ARTIFACT_INVALID, ARTIFACT_TOO_NEW, IDENTITY_MISMATCH where the tag holds something else.

        """
        content = self._content()
        return None if content is None else self._parse(content)

    def mark(self, entry: oci.Document, raw: bytes) -> None:
        """Give an engine its tag. From now on others list it, too."""
        tag = marker(self._tag, entry)
        if self._registry.resolve(tag, (oci.MANIFEST_TYPE,)) != entry["digest"]:
            self._registry.put_manifest(tag, raw, oci.MANIFEST_TYPE)

    def settle(self, own: Iterable[oci.Document]) -> artifact.ModelIndex:
        """Write the index until one that was read after the last writing lists every engine that has a tag.

        `own`: entries that are known already.

        Raises:
            EnginefarmError: INDEX_CONTESTED, and as `read`.

        """
        known = {entry["digest"]: entry for entry in own}
        for attempt in range(_ATTEMPTS):
            content = self._content()
            index = None if content is None else self._parse(content)
            current = {} if index is None else {artifact.slot_of(entry): entry for entry in index.entries}
            known |= {entry["digest"]: entry for entry in current.values()}
            merged = current | self._marked(known)
            if index is not None and content is not None and merged == current:
                if self._sign is not None:
                    self._sign(content)
                return index
            serial = 1 + (index.serial if index else 0)
            if serial > artifact.LAST_SERIAL:
                what = f"the index {self.where} has the last serial that there is"
                fix = "push under another --tag, or to another place"
                raise EnginefarmError(Reason.ARTIFACT_INVALID, what, why="somebody wrote it to block the tag", fix=fix)
            made = artifact.make_index(self._model, list(merged.values()), serial)
            self._sign_before(made)
            self._registry.put_manifest(self._tag, made, oci.INDEX_TYPE)
            # apart from others who do the same
            if self._registry.cancel.wait(_PAUSE_S * attempt):
                raise EnginefarmError(Reason.INTERRUPTED, f"pushing {self.where} was stopped")
        raise EnginefarmError(Reason.INDEX_CONTESTED, f"others keep writing the index {self.where}")

    def _content(self) -> bytes | None:
        found = self._registry.manifest(self._tag, (oci.INDEX_TYPE, oci.MANIFEST_TYPE))
        return None if found is None else found[0]

    def _parse(self, content: bytes) -> artifact.ModelIndex:
        try:
            return artifact.parse_index(content, self.where, self._model)
        except EnginefarmError as error:
            if error.reason is not Reason.ARTIFACT_TOO_NEW:
                error.fix = "push under another --tag, or to another place"
            raise

    def _sign_before(self, content: bytes) -> None:
        if self._sign is not None:
            # by digest first: whoever finds the tag finds what belongs to it
            self._registry.put_manifest(oci.digest_of(content), content, oci.INDEX_TYPE)
            self._sign(content)

    def _marked(self, known: Mapping[str, oci.Document]) -> dict[tuple[str, str, str], oci.Document]:
        """Return the entries of all engines that have a tag of this index, by place."""
        tags = [tag for tag in self._registry.tags() if self._markers.fullmatch(tag)]
        found = self._registry.together([partial(self._entry, tag, known) for tag in tags])
        return {artifact.slot_of(entry): entry for entry in found if entry is not None}

    def _entry(self, tag: str, known: Mapping[str, oci.Document]) -> oci.Document | None:
        digest = self._registry.resolve(tag, (oci.MANIFEST_TYPE,))
        if digest is None:
            return None
        try:
            entry = known.get(digest) or self._describe(digest)
        except EnginefarmError as error:
            if error.reason not in _BROKEN:
                raise
            self._listen(Note(subject=self.where, text=f"{tag} is left out: {error.reason.value.slug}, {error.what}"))
            return None
        # a tag that only looks like one of ours
        return entry if entry is not None and marker(self._tag, entry) == tag else None

    def _describe(self, digest: str) -> oci.Document | None:
        """Describe an engine that somebody else has pushed."""
        found = self._registry.manifest(digest, (oci.MANIFEST_TYPE,))
        if found is None:
            return None
        parsed = artifact.parse_artifact(found[0], f"{self.where}@{digest}")
        content = self._registry.read(parsed.config)
        manifest = artifact.parse_manifest(content, f"{self.where}@{digest}")
        artifact.check_files(parsed, manifest, f"{self.where}@{digest}")
        if manifest.recipe.name != self._model:
            return None
        return artifact.engine_entry(manifest, parsed.descriptor)
