"""Runs baselines: the stage `baseline` in a Python of the user's choice, which has PyTorch or ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.stage import StageRequest, StageResult, collect, lay_out
from builder.worker_source import WORKER

STAGE = "baseline"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "USER", "LOGNAME", "CUDA_HOME", "CC", "CXX")
_SOURCE = "source"


def run_baseline(python: Path, request: StageRequest, stop: threading.Event) -> StageResult:
    """Run one baseline to its end; its caches lie in its folder and go with it.

    Raises:
        EnginefarmError: ENVIRONMENT_MISSING where the Python cannot be started; else as `stage.collect`.

    """
    lay_out(request)
    _copy_worker(request.folder / _SOURCE / "builder")
    scratch = request.folder / "tmp"
    scratch.mkdir()
    argv = [str(python), "-m", "builder.worker", str(request.folder)]
    try:
        outcome = process.run(
            argv,
            cwd=request.folder,
            env=_environment(request, scratch),
            log=request.log,
            timeout_s=request.timeout_s,
            cancel=stop,
        )
    except OSError as error:
        what = f"{python} cannot be started"
        fix = "name another Python with --baseline-python"
        raise EnginefarmError(Reason.ENVIRONMENT_MISSING, what, why=str(error), fix=fix) from error
    return collect(request, outcome)


def _copy_worker(package: Path) -> None:
    """Give the stage a source of its own: beside the farm's lie packages for another Python."""
    shutil.copytree(WORKER, package / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    # without it, a farm installed in that Python would come first
    (package / "__init__.py").touch()


def _environment(request: StageRequest, scratch: Path) -> dict[str, str]:
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"PYTHONPATH": str(request.folder / _SOURCE), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
    # packages of the user's own stay in reach although the home is another
    env["PYTHONUSERBASE"] = os.environ.get("PYTHONUSERBASE") or str(Path.home() / ".local")
    env |= {"HOME": str(scratch), "TMPDIR": str(scratch)}
    if request.gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = request.gpu
    return env
