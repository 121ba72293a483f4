"""Which GPU will do for a job that is tuned on one. Pure: GPUs come as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.errors import EnginefarmError, Reason
from builder.gpu import VISIBLE, Gpu
from builder.plan import Job
from builder.targets import sm_number

_AMPERE = (8, 0)
_ELSEWHERE = "run this where the engine shall be used"


def fits(job: Job, gpu: Gpu) -> bool:
    """Say whether the job's engine can be tuned on this GPU: it has the SM, or the engine is for all from Ampere on."""
    return gpu.sm in job.sms or (job.compatibility == "ampere_plus" and sm_number(gpu.sm) >= _AMPERE)


def alike(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Keep the GPUs that are like the first: the same name, SM, driver and kind. Their engines are interchangeable."""
    return tuple(gpu for gpu in gpus if _kind(gpu) == _kind(gpus[0]))


def tunable(job: Job, gpus: Sequence[Gpu], sms: Sequence[str]) -> tuple[Gpu, ...]:
    """Keep the GPUs to tune a job's engine on: alike, and of an SM that the job names if there is one here.

    `sms`: those that the job's stack has kernels for.
    """
    able = [gpu for gpu in gpus if gpu.sm in sms and fits(job, gpu)]
    return alike([gpu for gpu in able if gpu.sm in job.sms] or able)


def hidden(environ: Mapping[str, str]) -> str | None:
    """Say what may keep a program from the GPUs of its machine."""
    return f"{VISIBLE} is {environ[VISIBLE]!r}" if VISIBLE in environ else None


def choose_gpus(job: Job, gpus: Sequence[Gpu], doing: str, why_none: str | None = None) -> tuple[Gpu, ...]:
    """Keep the GPUs on which the engine of a job runs; `doing` says what is done to it, such as "timed".

    Raises:
        EnginefarmError: GPU_NEEDED where there is none at all, SM_MISMATCH where none fits.

    """
    if not gpus:
        what = f"{job.id} can be {doing} only on a machine with an NVIDIA GPU, and this one has none"
        raise EnginefarmError(Reason.GPU_NEEDED, what, why=why_none, fix=_ELSEWHERE)
    fitting = tuple(gpu for gpu in gpus if fits(job, gpu))
    if not fitting:
        sms = "8.0 or later" if job.compatibility == "ampere_plus" else ", ".join(job.sms)
        raise _none_fits(job, gpus, doing, sms, _ELSEWHERE)
    return fitting


def wrong_gpu(job: Job, gpus: Sequence[Gpu], sms: Sequence[str]) -> EnginefarmError:
    """Say that a job's engine can be tuned on no GPU here, and what could be built instead; `sms` as in `tunable`."""
    here = sorted({gpu.sm for gpu in gpus}, key=sm_number)
    able = [sm for sm in here if sm in sms]
    fix = f"take a stack that has SM {', '.join(here)} (`enginefarm doctor` names them), or build on another machine"
    if able:
        fix = f"ask for a target of SM {', '.join(able)}, or build on another machine"
    if any(sm_number(sm) >= _AMPERE for sm in able) and min(map(sm_number, job.sms)) >= _AMPERE:
        fix += "; --compat ampere_plus makes slower engines that run on every GPU from SM 8.0"
    wanted = job.sms
    if job.compatibility == "ampere_plus":
        wanted = tuple(sm for sm in sorted(sms, key=sm_number) if sm_number(sm) >= _AMPERE)
    return _none_fits(job, gpus, "built", ", ".join(wanted), fix)


def _none_fits(job: Job, gpus: Sequence[Gpu], doing: str, sms: str, fix: str) -> EnginefarmError:
    here = ", ".join(dict.fromkeys(f"{gpu.name} (SM {gpu.sm})" for gpu in gpus))
    what = f"{job.id} can be {doing} only on a GPU of SM {sms}; here: {here}"
    return EnginefarmError(Reason.SM_MISMATCH, what, fix=fix)


def _kind(gpu: Gpu) -> tuple[str, str, str, bool, int]:
    return gpu.name, gpu.sm, gpu.driver, gpu.mig, gpu.memory_bytes if gpu.mig else 0
