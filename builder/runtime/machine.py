"""Does an engine fit this machine? Asked of TensorRT's version, the GPU and the platform before anything is loaded."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import TYPE_CHECKING, Any, Tuple

from .reasons import EngineRefused

if TYPE_CHECKING:
    from builder.worker.cuda import Device

    from .folder import Checked

# kind of engine to the modules that may load it; wheels of bindings alone have the longer names
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "AMD64": "amd64", "arm64": "arm64"}
AMPERE = (8, 0)


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
    here = f"{platform.system().lower()}/{ARCHITECTURES.get(platform.machine(), platform.machine())}"
    if facts.platform != here:
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
    if built[:3] == here[:3]:
        return
    if checked.facts is not None and checked.facts.version_compatible and built[0] == here[0] and built <= here:
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
    if facts.hardware_compatibility == "ampere_plus" and _numbers(device.sm) >= AMPERE:
        return
    what = f"the engine is for SM {', '.join(facts.sms)}, {device.name} is SM {device.sm}"
    raise EngineRefused("sm-mismatch", what, fix="use the engine of this GPU")


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
