"""Which engine fits which machine, and why the others do not. Pure: engines and machines come as data.

Order: exact device, same SM, hardware-compatible, version-compatible. Every refusal and warning has a reason code.
docs/compatibility.md says each rule with its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from builder.candidates import Candidate, candidate_of_annotations, candidate_of_manifest
from builder.compat_rules import KnownBad, Rules, load_rules, numbers, same_release
from builder.engine_header import Header
from builder.errors import EnginefarmError, Reason
from builder.machine import Facts, GpuFacts

__all__ = [
    "MOST_TOLD",
    "PRECISIONS",
    "Candidate",
    "Finding",
    "Fit",
    "Verdict",
    "Wish",
    "candidate_of_annotations",
    "candidate_of_manifest",
    "header_findings",
    "no_fit",
    "rank",
    "verdict",
]

MOST_TOLD = 50
"""Whoever writes a list chooses how long it is."""

_RTX, _CLASSIC = "TensorRT-RTX", "TensorRT"
# Among engines that fit alike and of which none was asked for: the fastest first, int8 last as it is the least exact.
PRECISIONS = ("fp16", "bf16", "tf32", "fp32", "int8")
_LEVELS = ("none", "same_compute_capability", "ampere_plus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of an engine besides that it runs. Null and false ask for nothing.

    `tensorrt`: the version that shall load it, in place of the machine's; 1.x is one of TensorRT-RTX.
    """

    precision: str | None = None
    allow_host_code: bool = False
    require_verified: bool = False
    stack: str | None = None
    tensorrt: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Why an engine does not fit, or what speaks against it."""

    reason: Reason
    text: str


class Fit(Enum):
    """How well an engine fits, best first."""

    EXACT_DEVICE = "exact-device"
    SAME_SM = "same-sm"
    HARDWARE_COMPATIBLE = "hardware-compatible"
    VERSION_COMPATIBLE = "version-compatible"
    NONE = "none"


_ORDER = {fit: place for place, fit in enumerate(Fit)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one engine. `gpu`: the GPU it would run on; null where it runs on none."""

    candidate: Candidate
    gpu: str | None
    fit: Fit
    refusals: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Say whether the engine runs here."""
        return self.fit is not Fit.NONE


@dataclass(slots=True)
class _Case:
    """One engine on one machine, while it is being judged."""

    candidate: Candidate
    facts: Facts
    wish: Wish
    rules: Rules
    refusals: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    # it runs under this later release because it was built to
    later: bool = False
    # the driver is older than this one, and CUDA's forward compatibility package makes up for it where it works
    lowest_driver: str | None = None

    def refuse(self, reason: Reason, text: str) -> None:
        self.refusals.append(Finding(reason, text))

    def warn(self, reason: Reason, text: str) -> None:
        self.warnings.append(Finding(reason, text))


def verdict(candidate: Candidate, facts: Facts, wish: Wish, known_bad: Sequence[KnownBad]) -> Verdict:
    """Judge one engine: all that speaks against it, not only the first thing."""
    case = _Case(candidate=candidate, facts=facts, wish=wish, rules=load_rules())
    for judge in (_platform, _tensorrt, _cuda, _driver, _plugins, _wished):
        judge(case)
    looks = [_look(case, index, gpu, known_bad) for index, gpu in enumerate(facts.gpus)]
    looks.sort(key=lambda look: (bool(look.refusals), _ORDER[look.fit], len(look.warnings)))
    best = looks[0] if looks else _NOWHERE
    refusals = (*case.refusals, *best.refusals)
    fit = Fit.NONE if refusals else best.fit
    return Verdict(
        candidate=candidate,
        gpu=None if fit is Fit.NONE else best.gpu,
        fit=fit,
        refusals=refusals,
        warnings=(*case.warnings, *best.warnings),
    )


def rank(
    candidates: Iterable[Candidate], facts: Facts, wish: Wish, known_bad: Sequence[KnownBad]
) -> tuple[Verdict, ...]:
    """Judge engines and put them in order: the one to take first, those that do not fit last."""
    verdicts = [verdict(candidate, facts, wish, known_bad) for candidate in candidates]
    return tuple(sorted(verdicts, key=lambda one: _place(one, facts)))


def header_findings(candidate: Candidate, header: Header) -> tuple[Finding, ...]:
    """Compare the head of an engine's file with what its manifest says."""
    family = _family(candidate)
    kind = {"tensorrt": _CLASSIC, "tensorrt-rtx": _RTX}.get(header.kind or "")
    if kind is None or header.version is None:
        return (Finding(Reason.ENGINE_HEADER, f"the file does not begin as an engine of {family} does"),)
    if kind != family or not same_release(header.version, candidate.tensorrt):
        text = f"its header says {kind} {header.version}, its manifest {family} {candidate.tensorrt}"
        return (Finding(Reason.ENGINE_HEADER, text),)
    sms = load_rules().header_sms(header.version, header.targets)
    if sms is not None and set(sms) != set(candidate.sms):
        text = f"its header says SM {', '.join(sms)}, its manifest SM {', '.join(candidate.sms)}"
        return (Finding(Reason.ENGINE_HEADER, text),)
    return ()


def no_fit(verdicts: Sequence[Verdict], what: str) -> EnginefarmError:
    """Say that none of some engines fits, and why not: of each of the first. `what`: such as "engine of resnet18"."""
    told = verdicts[:MOST_TOLD]
    lines = [f"{one.candidate.job}: {'; '.join(_said(finding) for finding in one.refusals)}" for one in told]
    if len(verdicts) > len(told):
        lines.append(f"and {len(verdicts) - len(told)} more")
    return EnginefarmError(
        Reason.NO_ENGINE_FITS, f"no {what} fits this machine", why="\n".join(lines) or "there is none"
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """An engine on one GPU."""

    gpu: str | None
    fit: Fit
    refusals: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()


_NOWHERE = _Look(None, Fit.NONE, refusals=(Finding(Reason.GPU_NEEDED, "this machine has no NVIDIA GPU for it"),))


def _platform(case: _Case) -> None:
    mine, theirs = case.facts, case.candidate
    if not theirs.os:
        # an engine without a manifest: what it does not say is said of its SM
        return
    systems = {mine.os, theirs.os}
    portable = theirs.rtx and systems <= set(case.rules.rtx_systems)
    if theirs.architecture != mine.architecture or (len(systems) > 1 and not portable):
        here = f"{mine.os}/{mine.architecture}"
        case.refuse(Reason.PLATFORM_MISMATCH, f"is for {theirs.os}/{theirs.architecture}; here: {here}")
    elif theirs.l4t is not None and mine.l4t is None:
        case.refuse(Reason.PLATFORM_MISMATCH, f"is for Jetson with L4T {theirs.l4t}; this is no Jetson")
    elif theirs.l4t is not None and mine.l4t is not None:
        if numbers(theirs.l4t)[:1] != numbers(mine.l4t)[:1]:
            case.refuse(Reason.PLATFORM_MISMATCH, f"is for L4T {theirs.l4t}; here: L4T {mine.l4t}")
    elif mine.l4t is not None and numbers(mine.l4t) < (case.rules.servers_since_l4t,):
        since = case.rules.servers_since_l4t
        text = f"is for Arm servers, which Jetsons can be from L4T {since} on; here: L4T {mine.l4t}"
        case.refuse(Reason.PLATFORM_MISMATCH, text)


def _tensorrt(case: _Case) -> None:
    candidate = case.candidate
    family, built = _family(candidate), candidate.tensorrt
    here, other = _installed(case.facts, case.wish, rtx=candidate.rtx)
    if here is None:
        if other is not None:
            loader = _CLASSIC if candidate.rtx else _RTX
            case.refuse(Reason.TENSORRT_VERSION, f"needs {family} {built}; here: {loader} {other} alone")
        else:
            case.warn(Reason.TENSORRT_VERSION, f"needs {family} {built}; none was found here")
        return
    if same_release(built, here):
        return
    if candidate.rtx or not candidate.version_compatible:
        text = f"was built by {family} {built}, which alone can load it; here: {here}"
        case.refuse(Reason.TENSORRT_VERSION, text)
    elif not case.rules.runs_later(built, here):
        text = f"was built by {family} {built} to be version-compatible, which does not reach {here}"
        case.refuse(Reason.TENSORRT_VERSION, text)
    else:
        case.later = True
        if not candidate.host_code:
            text = f"has no lean runtime of its own: load that of TensorRT {built} with Runtime.load_runtime"
            case.warn(Reason.TENSORRT_VERSION, text)


def _cuda(case: _Case) -> None:
    built, here = numbers(case.candidate.cuda)[:1], numbers(case.facts.cuda or "")[:1]
    if built and here and built != here:
        facts, asked = case.facts, case.wish.tensorrt
        installed = [one for one in (facts.tensorrt, facts.tensorrt_rtx) if one is not None]
        # a toolkit says nothing of a TensorRT that is elsewhere, as in a container
        known = any(asked is None or same_release(asked, one) for one in installed)
        judge = case.refuse if known else case.warn
        judge(Reason.CUDA_MAJOR, f"was built with CUDA {case.candidate.cuda}; here: CUDA {facts.cuda}")


def _driver(case: _Case) -> None:
    facts, built = case.facts, numbers(case.candidate.cuda)
    # Jetson's driver is part of L4T and counts otherwise
    if facts.l4t is not None or facts.driver is None or not built:
        return
    speaks = numbers(facts.driver_cuda or "")
    lowest = case.rules.lowest_drivers.get(built[0])
    old = lowest is not None and numbers(facts.driver) < numbers(lowest)
    if old and speaks[:1] < built[:1]:
        text = f"CUDA {case.candidate.cuda} needs driver {lowest} or newer; here: {facts.driver}"
        case.refuse(Reason.DRIVER_TOO_OLD, text)
    elif old:
        # whether the package that speaks the newer CUDA works here depends on the GPU
        case.lowest_driver = lowest
    elif speaks and len(built) > 1 and speaks[:2] < built[:2]:
        text = f"was built with CUDA {case.candidate.cuda}, the driver knows {facts.driver_cuda}, which is compatible"
        case.warn(Reason.DRIVER_TOO_OLD, text)


def _plugins(case: _Case) -> None:
    missing = [name for name in case.candidate.plugins if name not in case.facts.plugins]
    if missing:
        case.refuse(Reason.PLUGIN_MISSING, f"needs {', '.join(missing)}; ENGINEFARM_PLUGINS names what is installed")


def _wished(case: _Case) -> None:
    candidate, wish = case.candidate, case.wish
    if candidate.host_code and not wish.allow_host_code:
        case.refuse(Reason.HOST_CODE_REFUSED, "carries code for the host, which is not allowed here")
    if wish.precision is not None and candidate.precision != wish.precision:
        said = candidate.precision or "of unknown precision"
        case.refuse(Reason.PRECISION_MISMATCH, f"is {said}; asked for: {wish.precision}")
    if wish.stack is not None and candidate.stack != wish.stack:
        said = candidate.stack or "unknown"
        case.refuse(Reason.TENSORRT_VERSION, f"is of stack {said}; asked for: {wish.stack}")
    if not candidate.engine_verified:
        judge = case.refuse if wish.require_verified else case.warn
        judge(Reason.NOT_VERIFIED, "was never run on a GPU to be verified")


def _look(case: _Case, index: int, gpu: GpuFacts, known_bad: Sequence[KnownBad]) -> _Look:
    label = gpu.name if len(case.facts.gpus) == 1 else f"GPU {index} ({gpu.name})"
    fit = _hardware(case, gpu)
    if fit is Fit.NONE:
        return _Look(None, fit, refusals=(_wrong_sm(case),))
    refusals: list[Finding] = []
    warnings: list[Finding] = []
    if fit is Fit.SAME_SM and case.candidate.device is not None and _level(case) == "none":
        text = f"was tuned on {case.candidate.device}, not on {gpu.name}: it may be slower"
        warnings.append(Finding(Reason.SM_MISMATCH, text))
    if case.lowest_driver is not None:
        works = case.rules.takes_forward_compatibility(gpu.name)
        package = "CUDA's forward compatibility package"
        means = f"{package} makes up for it" if works else f"{package} does not work with {gpu.name}"
        text = f"driver {case.facts.driver} is older than {case.lowest_driver}; {means}"
        (warnings if works else refusals).append(Finding(Reason.DRIVER_TOO_OLD, text))
    situation = _situation(case, gpu)
    for row in known_bad:
        if row.matches(situation):
            found = Finding(Reason.KNOWN_BAD, f"{row.text} ({row.id}; {row.source})")
            (refusals if row.refuses else warnings).append(found)
    if case.later:
        fit = Fit.VERSION_COMPATIBLE
    return _Look(label, fit, tuple(refusals), tuple(warnings))


def _hardware(case: _Case, gpu: GpuFacts) -> Fit:
    candidate, level = case.candidate, _level(case)
    if gpu.sm in candidate.sms:
        if candidate.device is not None and _bare(candidate.device) == _bare(gpu.name):
            return Fit.EXACT_DEVICE
        return Fit.HARDWARE_COMPATIBLE if level == "ampere_plus" else Fit.SAME_SM
    if level == "ampere_plus" and numbers(gpu.sm) >= case.rules.ampere_plus_min_sm:
        return Fit.HARDWARE_COMPATIBLE
    return Fit.NONE


def _level(case: _Case) -> str:
    """Return the level of hardware compatibility as far as it counts here."""
    jetson = case.facts.l4t is not None or case.candidate.l4t is not None
    void = case.candidate.rtx or (jetson and not case.rules.ampere_plus_on_jetson)
    return "none" if void else case.candidate.hardware_compatibility


def _wrong_sm(case: _Case) -> Finding:
    here = ", ".join(dict.fromkeys(f"{gpu.name} (SM {gpu.sm})" for gpu in case.facts.gpus))
    wanted = (
        f"is for SM {', '.join(case.candidate.sms)}"
        if case.candidate.sms
        else "does not say for which SM it is, and has no manifest.json beside it"
    )
    return Finding(Reason.SM_MISMATCH, f"{wanted}; here: {here}")


def _situation(case: _Case, gpu: GpuFacts) -> dict[str, object]:
    candidate, facts = case.candidate, case.facts
    return {
        "tensorrt": candidate.tensorrt,
        "cuda": candidate.cuda,
        "driver": facts.driver,
        "sm": gpu.sm,
        "gpu": gpu.name,
        "compatibility": candidate.hardware_compatibility,
        "precision": candidate.precision,
        "architecture": facts.architecture,
        "jetson": facts.l4t is not None,
        "rtx": candidate.rtx,
        "version_compatible": candidate.version_compatible,
        "verified": candidate.engine_verified,
    }


def _installed(facts: Facts, wish: Wish, *, rtx: bool) -> tuple[str | None, str | None]:
    """Return the TensorRT that would load an engine of this family, and that of the other family."""
    classic, other = facts.tensorrt, facts.tensorrt_rtx
    if wish.tensorrt is not None:
        is_rtx = numbers(wish.tensorrt)[:1] == (1,)
        classic, other = (None, wish.tensorrt) if is_rtx else (wish.tensorrt, None)
    return (other, classic) if rtx else (classic, other)


def _bare(device: str) -> str:
    """Leave out what drivers put around the same name or do not: `Tesla T4` and `NVIDIA T4` are one.

    CUDA calls a Jetson's GPU `Orin`, and NVML `Orin (nvgpu)`.
    """
    return " ".join(word for word in device.lower().split() if word not in ("nvidia", "tesla", "(nvgpu)"))


def _family(candidate: Candidate) -> str:
    return _RTX if candidate.rtx else _CLASSIC


def _said(finding: Finding) -> str:
    return f"{finding.reason.value.code} {finding.text}"


def _place(one: Verdict, facts: Facts) -> tuple[object, ...]:
    """Sort key: best first, and the same order whatever the order of the candidates."""
    candidate = one.candidate
    precision = PRECISIONS.index(candidate.precision) if candidate.precision in PRECISIONS else len(PRECISIONS)
    level = _LEVELS.index(candidate.hardware_compatibility) if candidate.hardware_compatibility in _LEVELS else 0
    return (
        _ORDER[one.fit],
        len(one.refusals),
        len(one.warnings),
        # random weights are for tests
        candidate.weights == "seeded",
        precision,
        level,
        candidate.version_compatible,
        tuple(-number for number in numbers(candidate.tensorrt)),
        candidate.driver != facts.driver,
        candidate.job,
        candidate.key,
    )
