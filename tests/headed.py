"""Engines whose files begin as real ones do, for tests of what reads their heads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.key import canonical, make_key
from builder.machine import Facts, GpuFacts
from builder.store import Entry, Store
from builder.titles import ENGINE, KEY, MANIFEST, PROOF
from tests.engines import manifest

T4 = GpuFacts(name="Tesla T4", sm="7.5", memory_bytes=15 << 30)
A100 = GpuFacts(name="NVIDIA A100-SXM4-40GB", sm="8.0", memory_bytes=40 << 30)


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine of TensorRT 10.9, tuned on a T4 unless said otherwise."""

    recipe: str = "yolo"
    precision: str = "fp16"
    tensorrt: str = "10.9.0.34"
    cuda: str = "12.6"
    stack: str = "trt10.9-cuda12.6"
    sm: str = "7.5"
    device: str | None = "Tesla T4"
    driver: str = "560.35.05"
    head: bytes | None = None
    plugins: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """Name the job."""
        return f"{self.recipe}-{self.precision}-{self.stack}-sm{self.sm.replace('.', '')}"

    @property
    def content(self) -> bytes:
        """Make the file: the head that its release writes, and something behind it."""
        magic = b"vtrt" if self.stack.startswith("trtrtx") else b"ftrt"
        numbers = bytes(int(number) for number in self.tensorrt.split("."))
        head = self.head if self.head is not None else magic + bytes(0x14) + numbers
        return head + self.job.encode() * 20

    def files(self) -> dict[str, bytes]:
        """Make all files of its folder."""
        document = json.loads(manifest(self.recipe, self.precision).to_json())
        tuned = {"tensorrt": self.tensorrt, "device": self.device}
        key = make_key("engine", {"job": self.job, "plugins": list(self.plugins)} | tuned)
        document |= {"job": self.job, "key": key.sha256}
        document["stack"] |= {"name": self.stack, "tensorrt": self.tensorrt, "cuda": self.cuda}
        document["target"] = {"name": "some", "sms": [self.sm]}
        document["engine"] |= {"sha256": hashlib.sha256(self.content).hexdigest(), "size": len(self.content)}
        document["proof"]["engine_verified"] = self.device is not None
        if self.device is not None:
            document["build"]["tuned_on"] = self._tuned()
        proof = make_key("proof", {"engine": key.sha256})
        return {
            ENGINE: self.content,
            MANIFEST: json.dumps(document).encode(),
            KEY: canonical(key.document),
            PROOF: canonical(proof.document),
        }

    def add(self, store: Store, annotations: dict[str, str] | None = None) -> Entry:
        """Put it into a store."""
        files: dict[str, Path | bytes] = {**self.files()}
        key = json.loads(self.files()[MANIFEST])["key"]
        return store.add(kind="engine", key=key, name=self.job, files=files, annotations=annotations or {})

    def write(self, folder: Path) -> Path:
        """Write it as plain files; return the engine's."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)
        return folder / ENGINE

    def _tuned(self) -> dict[str, Any]:
        return {
            "name": self.device,
            "sm": self.sm,
            "driver": self.driver,
            "workspace_bytes": 1 << 30,
            "retried_with_less_memory": False,
            "precision_constraints": 0,
            "build_seconds": 41.0,
            "timing_cache": {},
            "watched": None,
        }


def machine(gpu: GpuFacts = T4, **changes: Any) -> Facts:
    """Describe the machine on which such an engine was built, or another one."""
    facts: dict[str, Any] = {
        "os": "linux",
        "architecture": "amd64",
        "driver": "560.35.05",
        "driver_cuda": "12.6",
        "gpus": (gpu,),
        "tensorrt": "10.9.0.34",
        "cuda": "12.6",
    }
    return Facts(**{**facts, **changes})
