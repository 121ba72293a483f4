"""Does an engine fit this machine? Asked of TensorRT's version, the GPU and the platform before anything is loaded."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from typing import TYPE_CHECKING, Any, Tuple

from .reasons import EngineRefused

if TYPE_CHECKING:
    from builder.worker.cuda import Device

    from .folder import Checked

RTX = "tensorrt-rtx"
# kind of engine to the modules that may load it; wheels of bindings alone have the longer names
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "AMD64": "amd64", "arm64": "arm64"}
# What the resolver has as data (resources/portability.toml), which takes a newer Python to read; a test holds both
# equal: GPUs of hardware-compatible engines, releases and pairs of majors of version-compatible ones, RTX's systems.
AMPERE = (8, 0)
COMPATIBLE_SINCE = (8, 6)
COMPATIBLE_ACROSS = {(8, 10), (10, 11)}
RTX_SYSTEMS = {"linux", "windows"}
JETSON = "/etc/nv_tegra_release"


def import_tensorrt(kind: str) -> Any:
    """Import the TensorRT that an engine's header asks for.

    Raises:
        EngineRefused: library-missing.

    """
    problems = []
    for name in sorted(MODULES[kind], key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            problems.append(f"{name}: {error}")
        except (OSError, RuntimeError, AttributeError) as error:
            # what a library that does not fit its bindings raises
            problems.append(f"{name}: {type(error).__name__}: {error}")
    what = f"{'TensorRT-RTX' if kind.endswith('rtx') else 'TensorRT'} cannot be imported"
    raise EngineRefused("library-missing", what, why="\n".join(problems), fix="install the engine's TensorRT")


def check_machine(checked: Checked, *, allow_host_code: bool) -> None:
    """Check what can be checked without TensorRT and without a GPU.

    Raises:
        EngineRefused: platform-mismatch, host-code-refused.

    """
    facts = checked.facts
    if facts is None:
        return
    system, architecture = platform.system().lower(), ARCHITECTURES.get(platform.machine(), platform.machine())
    here = f"{system}/{architecture}"
    portable = RTX_SYSTEMS if checked.header.kind == RTX and system in RTX_SYSTEMS else {system}
    if facts.platform not in {f"{name}/{architecture}" for name in portable}:
        what = f"the engine is for {facts.platform}, this is {here}"
        raise EngineRefused("platform-mismatch", what, fix="use the engine of this platform")
    if facts.host_code and not allow_host_code:
        what = f"{facts.job} carries code that would run on this host"
        raise EngineRefused("host-code-refused", what, fix="take an engine without, or pass allow_host_code=True")


def check_tensorrt(checked: Checked, trt: Any) -> None:
    """Compare the header with the TensorRT that would load the engine; some releases load what they cannot run.

    Raises:
        EngineRefused: tensorrt-version.

    """
    built, here = _numbers(str(checked.header.version)), _numbers(str(trt.__version__))
    # as far as both say: 8.6.1.2 does not load what 8.6.1.6 built
    known = min(len(built), len(here))
    if known and built[:known] == here[:known]:
        return
    if checked.facts is not None and checked.facts.version_compatible and _runs_later(built, here):
        return
    what = f"the engine was built by TensorRT {checked.header.version}, this is {trt.__version__}"
    raise EngineRefused("tensorrt-version", what, fix="use the engine of this TensorRT, or install the engine's")


def check_gpu(checked: Checked, device: Device) -> None:
    """Compare the manifest with the GPU.

    Raises:
        EngineRefused: sm-mismatch.

    """
    facts = checked.facts
    if facts is None or device.sm in facts.sms:
        return
    wide = facts.hardware_compatibility == "ampere_plus" and checked.header.kind != RTX and not os.path.exists(JETSON)
    if wide and _numbers(device.sm) >= AMPERE:
        return
    what = f"the engine is for SM {', '.join(facts.sms)}, {device.name} is SM {device.sm}"
    raise EngineRefused("sm-mismatch", what, fix="use the engine of this GPU, or another GPU by device=")


def _runs_later(built: Tuple[int, ...], here: Tuple[int, ...]) -> bool:
    if built[:2] < COMPATIBLE_SINCE or here < built[: len(here)]:
        return False
    return built[0] == here[0] or (built[0], here[0]) in COMPATIBLE_ACROSS


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
