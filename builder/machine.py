"""What a machine is, as far as engines care. Plain data: `builder.facts` reads it, `builder.compat` judges by it."""

from __future__ import annotations

from dataclasses import dataclass

# what the kernel, or Windows, calls a processor to what container platforms call it
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """A GPU that programs may use, or a MIG slice of one. `sm` such as "8.6"."""

    name: str
    sm: str
    memory_bytes: int
    uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A machine. Null is what is not there or not known.

    `architecture`: amd64 or arm64. `l4t`: release of Jetson's Linux, such as "36.4.0". `driver_cuda`: newest CUDA that
    the driver's library speaks, which a forward compatibility package raises. `tensorrt`, `tensorrt_rtx`, `cuda`: what
    applications here would load. `plugins`: names of TensorRT plugins installed.
    """

    os: str
    architecture: str
    l4t: str | None = None
    driver: str | None = None
    driver_cuda: str | None = None
    gpus: tuple[GpuFacts, ...] = ()
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    cuda: str | None = None
    plugins: tuple[str, ...] = ()
    disk_free_bytes: int | None = None
