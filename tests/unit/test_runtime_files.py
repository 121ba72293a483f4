"""What the runtime checks before TensorRT sees a byte."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runtime_damage import Damage, damages
from builder.reasons import Reason
from builder.runtime import EngineRefused, load, machine, opening
from builder.runtime.folder import read_engine
from builder.runtime.machine import check_gpu, check_machine, check_tensorrt, import_tensorrt
from builder.runtime.reasons import CODES
from builder.worker.cuda import Device
from builder.worker.trt import loading
from tests.runtime_fakes import VERSION, FakeDriver, fake_engine, write_folder
from tests.surfaces import FakeTensorRT

ROOT = Path(__file__).parents[2]
RUNTIME = sorted((ROOT / "builder" / "runtime").glob("*.py"))
SHARED = [ROOT / "builder" / name for name in ("engine_header.py", "worker/cuda.py", "worker/protocol.py")]
SHARED += [
    ROOT / "builder" / "worker" / name for name in ("profiles.py", "trt/loading.py", "trt/refit.py", "trt/session.py")
]
ALLOWED = {"numpy", "builder.worker.cuda", "builder.worker.protocol", "builder.engine_header"}
LINES = 12_000
PORTABILITY = ROOT / "builder" / "resources" / "portability.toml"


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeTensorRT, bytes]:
    trt, content = fake_engine(monkeypatch)
    monkeypatch.setattr(opening, "open_driver", lambda _ordinal: FakeDriver(trt))
    return trt, content


@pytest.fixture
def folder(scene: tuple[FakeTensorRT, bytes], tmp_path: Path) -> Path:
    return write_folder(tmp_path / "engine", scene[1])


def reason(refused: pytest.ExceptionInfo[EngineRefused]) -> str:
    return refused.value.reason


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: path.name)
def test_applications_need_no_more_than_numpy(path: Path) -> None:
    others = {name for name in imports(path) if name.split(".")[0] not in sys.stdlib_module_names} - ALLOWED
    assert {name for name in others if not name.startswith("builder.worker.trt")} == set()


@pytest.mark.parametrize("path", [*RUNTIME, *SHARED], ids=lambda path: path.name)
def test_it_is_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_codes_are_the_farms() -> None:
    assert {slug: Reason.from_slug(slug).value.code for slug in CODES} == CODES


def test_an_error_travels_between_processes_and_says_all() -> None:
    refused = EngineRefused("unsigned", "nobody vouches", why="no record", fix="pull it")
    again = pickle.loads(pickle.dumps(refused))  # noqa: S301
    assert str(again) == str(refused) == "EF-218 unsigned: nobody vouches\nwhy: no record\nfix: pull it"


@pytest.mark.parametrize("damage", damages(), ids=lambda damage: damage.name)
def test_damage_is_refused_before_anything_is_deserialized(
    scene: tuple[FakeTensorRT, bytes], folder: Path, damage: Damage
) -> None:
    damage.do(str(folder))
    with pytest.raises(EngineRefused) as refused:
        load(folder, **damage.options)
    assert reason(refused) == damage.reason
    assert scene[0].called("Runtime.deserialize_cuda_engine") == []


def test_a_whole_engine_is_deserialized_once_as_it_was_hashed(
    scene: tuple[FakeTensorRT, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = open

    def spy(path: Any, *args: Any, **options: Any) -> Any:
        reads.append(Path(path).name)
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", spy)
    load(folder, trust="local").close()
    assert reads.count("model.plan") == 1
    assert scene[0].called("Runtime.deserialize_cuda_engine") == [(scene[1],)]


def test_the_call_that_deserializes_is_in_one_place() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "builder").rglob("*.py")}
    counts = {path.name: text.count("deserialize_cuda_engine") for path, text in texts.items()}
    assert {name: count for name, count in counts.items() if count} == {"loading.py": 1}


def record(folder: Path, **changes: str) -> None:
    """Write what pull leaves."""
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.plan", "manifest.json")
    }
    note = {"engine_sha256": digests["model.plan"], "manifest_sha256": digests["manifest.json"], "signer": "farm"}
    (folder / "trust.json").write_text(json.dumps(note | changes), encoding="utf-8")


def test_a_record_of_pull_is_enough(folder: Path) -> None:
    record(folder)
    load(folder).close()


@pytest.mark.parametrize("field", ["engine_sha256", "manifest_sha256"])
@pytest.mark.parametrize("options", [{}, {"trust": "local"}, {"allow_untrusted": True}])
def test_a_record_that_says_otherwise_counts_always(folder: Path, field: str, options: dict[str, Any]) -> None:
    record(folder, **{field: "0" * 64})
    with pytest.raises(EngineRefused) as refused:
        load(folder, **options)
    assert reason(refused) == "identity-mismatch"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"engine_sha256": 1}'])
def test_a_record_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "trust.json").write_text(text, encoding="utf-8")
    with pytest.raises(EngineRefused) as refused:
        load(folder)
    assert reason(refused) in {"manifest-invalid", "identity-mismatch"}


def test_a_record_that_is_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "trust.json")
    with pytest.raises(EngineRefused) as refused:
        load(folder)
    assert reason(refused) == "manifest-invalid"


def test_gigabytes_that_are_no_engine_are_not_read(tmp_path: Path) -> None:
    bare = tmp_path / "bare.plan"
    bare.write_bytes(b"PK")
    os.truncate(bare, 100 << 30)
    with pytest.raises(EngineRefused) as refused:
        load(bare, allow_untrusted=True)
    assert reason(refused) == "engine-invalid"


@pytest.mark.parametrize("name", [".", "model.plan", "manifest.json"])
def test_what_everybody_may_change_is_nobodys(folder: Path, name: str) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(EngineRefused) as refused:
        load(folder, trust="local")
    assert reason(refused) == "unsigned"
    load(folder, allow_untrusted=True).close()


def test_a_bare_file_needs_the_flag(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.plan"
    bare.write_bytes((folder / "model.plan").read_bytes())
    with pytest.raises(EngineRefused) as refused:
        load(bare, trust="local")
    assert reason(refused) == "unsigned"
    load(bare, allow_untrusted=True).close()
    load(os.fsencode(bare), allow_untrusted=True).close()  # type: ignore[arg-type]
    load(folder / "model.plan", trust="local").close()


def test_a_file_that_is_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(folder / "model.plan", 10 << 30)
    with pytest.raises(EngineRefused) as refused:
        read_engine(str(folder), trust="local")
    assert reason(refused) == "digest-mismatch"


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": None},
        {"schema_version": True},
        {"engine": {}},
        {"engine__size": "many"},
        {"engine__size": float("inf")},
        {"target__sms": None},
        {"build": {"options": None}},
    ],
    ids=str,
)
def test_a_manifest_that_is_none_is_refused(
    scene: tuple[FakeTensorRT, bytes], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path / "odd", scene[1], **changes)
    with pytest.raises(EngineRefused) as refused:
        read_engine(str(folder), trust="local")
    assert reason(refused) == "manifest-invalid"


def test_a_manifest_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * LINES, encoding="utf-8")
    with pytest.raises(EngineRefused) as refused:
        read_engine(str(folder), trust="local")
    assert reason(refused) == "manifest-invalid"


@pytest.mark.parametrize("value", ["False", 0, None, "no"])
def test_unclear_host_code_counts_as_host_code(scene: tuple[FakeTensorRT, bytes], tmp_path: Path, value: Any) -> None:
    checked = read_engine(str(write_folder(tmp_path / "e", scene[1], engine__needs_host_code=value)), trust="local")
    with pytest.raises(EngineRefused) as refused:
        check_machine(checked, allow_host_code=False)
    assert reason(refused) == "host-code-refused"


@pytest.mark.parametrize(("needs", "allowed", "told"), [(True, True, [(True,)]), (False, True, [])])
def test_host_code_is_allowed_only_where_it_is_needed(
    scene: tuple[FakeTensorRT, bytes], tmp_path: Path, needs: bool, allowed: bool, told: list[Any]
) -> None:
    folder = write_folder(tmp_path / "e", scene[1], engine__needs_host_code=needs)
    load(folder, trust="local", allow_host_code=allowed).close()
    assert scene[0].called("Runtime.engine_host_code_allowed=") == told


@pytest.mark.parametrize(
    ("sm", "sms", "level", "fits"),
    [
        ("8.6", ["8.6"], "none", True),
        ("8.6", ["8.0", "8.6"], "none", True),
        ("8.9", ["8.6"], "none", False),
        ("8.9", ["8.6"], "same_compute_capability", False),
        ("9.0", ["8.0"], "ampere_plus", True),
        ("12.0", ["8.0"], "ampere_plus", True),
        ("7.5", ["8.0"], "ampere_plus", False),
    ],
)
def test_gpus(
    scene: tuple[FakeTensorRT, bytes], tmp_path: Path, sm: str, sms: list[str], level: str, fits: bool
) -> None:
    changes = {"target__sms": sms, "build__options__hardware_compatibility": level}
    checked = read_engine(str(write_folder(tmp_path / "e", scene[1], **changes)), trust="local")
    device = Device("GPU", sm, "GPU-0", "12.4")
    if fits:
        check_gpu(checked, device)
        return
    with pytest.raises(EngineRefused) as refused:
        check_gpu(checked, device)
    assert reason(refused) == "sm-mismatch"
    assert "device=" in refused.value.fix


@pytest.mark.parametrize(
    ("here", "compatible", "fits"),
    [
        ("8.6.0", False, True),
        ("8.6.1", False, False),
        ("8.6.1", True, True),
        ("8.5.3", True, False),
        ("10.3.0", True, True),
        ("11.3.0", True, False),
        ("8.10.0", True, True),
    ],
)
def test_releases(scene: tuple[FakeTensorRT, bytes], tmp_path: Path, here: str, compatible: bool, fits: bool) -> None:
    folder = write_folder(tmp_path / "e", scene[1], build__options__version_compatible=compatible)
    checked = read_engine(str(folder), trust="local")
    trt: Any = type("TensorRT", (), {"__version__": here})
    if fits:
        check_tensorrt(checked, trt)
        return
    with pytest.raises(EngineRefused) as refused:
        check_tensorrt(checked, trt)
    assert reason(refused) == "tensorrt-version"
    assert VERSION in str(refused.value)


@pytest.mark.parametrize(
    ("here", "compatible", "fits"),
    [("8.6.1.6", False, True), ("8.6.1.2", False, False), ("8.6.1.2", True, False), ("8.6.1.9", True, True)],
)
def test_build_numbers_count_where_both_say_them(
    scene: tuple[FakeTensorRT, bytes], tmp_path: Path, here: str, compatible: bool, fits: bool
) -> None:
    """An engine of 8.6.1.6 was reported to be unusable with 8.6.1.2."""
    folder = write_folder(tmp_path / "e", scene[1], build__options__version_compatible=compatible)
    checked = read_engine(str(folder), trust="local")
    checked = checked._replace(header=checked.header._replace(version="8.6.1.6"))
    trt: Any = type("TensorRT", (), {"__version__": here})
    with nullcontext() if fits else pytest.raises(EngineRefused, match=r"built by TensorRT 8\.6\.1\.6"):
        check_tensorrt(checked, trt)


@pytest.mark.skipif(not PORTABILITY.exists(), reason="the resolver's data are not here")
def test_rules_are_the_resolvers() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    rules = tomllib.loads(PORTABILITY.read_text(encoding="utf-8"))
    versions = rules["version_compatible"]
    assert tuple(map(int, versions["since"].split("."))) == machine.COMPATIBLE_SINCE
    assert {(int(old), int(new)) for old, new in versions["across"]} == machine.COMPATIBLE_ACROSS
    assert tuple(map(int, rules["ampere_plus"]["min_sm"].split("."))) == machine.AMPERE
    assert rules["ampere_plus"]["jetson"] is False
    assert set(rules["rtx"]["systems"]) == machine.RTX_SYSTEMS


def test_ampere_plus_is_not_for_jetsons(
    scene: tuple[FakeTensorRT, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"target__sms": ["8.6"], "build__options__hardware_compatibility": "ampere_plus"}
    checked = read_engine(str(write_folder(tmp_path / "e", scene[1], **changes)), trust="local")
    release = tmp_path / "nv_tegra_release"
    release.touch()
    monkeypatch.setattr(machine, "JETSON", str(release))
    with pytest.raises(EngineRefused) as refused:
        check_gpu(checked, Device("Orin", "8.7", "GPU-0", "12.4"))
    assert reason(refused) == "sm-mismatch"


@pytest.mark.parametrize(
    ("magic", "where", "fits"),
    [(b"vtrt", "windows/amd64", True), (b"ftrt", "windows/amd64", False), (b"vtrt", "linux/arm64", False)],
)
def test_engines_of_rtx_go_between_systems(
    scene: tuple[FakeTensorRT, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    magic: bytes,
    where: str,
    fits: bool,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    folder = write_folder(tmp_path / "e", magic + scene[1][4:], stack__platform=where)
    checked = read_engine(str(folder), trust="local")
    if fits:
        check_machine(checked, allow_host_code=False)
        return
    with pytest.raises(EngineRefused) as refused:
        check_machine(checked, allow_host_code=False)
    assert reason(refused) == "platform-mismatch"


def test_a_machine_without_tensorrt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineRefused) as refused:
        import_tensorrt("tensorrt")
    assert reason(refused) == "library-missing"
    assert "tensorrt_bindings" in refused.value.why


def test_what_tensorrt_refuses_is_sorted_into_reasons(scene: tuple[FakeTensorRT, bytes], tmp_path: Path) -> None:
    # a right head, and something that this TensorRT did not write
    folder = write_folder(tmp_path / "e", scene[1] + b"!")
    with pytest.raises(EngineRefused) as refused:
        load(folder, trust="local")
    assert reason(refused) == "engine-invalid"
    assert "magicTagRead" in refused.value.why


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        ("Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)", "driver-too-old"),
        ("Error Code 2: OutOfMemory (no further information)", "out-of-memory"),
        ("Unable to load library: libcudnn.so.8", "library-missing"),
        ("something else", "engine-invalid"),
    ],
)
def test_tensorrts_words(words: str, slug: str) -> None:
    assert loading.load_failure([words], "no").reason == slug


@pytest.mark.parametrize("options", [{"trust": "everybody"}, {"max_contexts": 0}, {"device": -1}])
def test_arguments_that_mean_nothing_are_errors(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(trust|max_contexts|device) is"):
        load(folder, lambda: None, **options)
    with pytest.raises(TypeError, match=r"^on_call is"):
        load(folder, lambda: None, on_call=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"device": "cuda:0"}, {"device": None}, {"max_contexts": "4"}], ids=str)
def test_numbers_are_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^(device|max_contexts) is a number"):
        load(tmp_path, fallback=lambda value: value, **options)
