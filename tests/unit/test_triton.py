"""Model repositories of Triton: what becomes one model, what its configuration says, and what is on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # type: ignore[import-untyped]

from builder.cli import main
from builder.errors import Reason
from builder.export_dir import choose_engines, export_triton, servable
from builder.key import canonical, make_key
from builder.manifest import Manifest
from builder.store import Entry, Store
from builder.titles import ENGINE, KEY, MANIFEST
from builder.triton import is_own_config, repository
from tests.artifacts import refusal
from tests.engines import add_engine, manifest

STRING, INT32, INT64, ENUM, MESSAGE = 9, 5, 3, 14, 11
# the part of Triton's model_config.proto that is written here: field to type, many or one, and name of its type
MODEL_CONFIG: dict[str, dict[str, tuple[int, bool, str]]] = {
    "Reshape": {"shape": (INT64, True, "")},
    "Tensor": {
        "name": (STRING, False, ""),
        "data_type": (ENUM, False, "DataType"),
        "dims": (INT64, True, ""),
        "reshape": (MESSAGE, False, "Reshape"),
    },
    "Group": {"kind": (ENUM, False, "Kind"), "count": (INT32, False, ""), "profile": (STRING, True, "")},
    "Batching": {"preferred_batch_size": (INT32, True, "")},
    "Pair": {"key": (STRING, False, ""), "value": (STRING, False, "")},
    "Config": {
        "name": (STRING, False, ""),
        "platform": (STRING, False, ""),
        "max_batch_size": (INT32, False, ""),
        "input": (MESSAGE, True, "Tensor"),
        "output": (MESSAGE, True, "Tensor"),
        "instance_group": (MESSAGE, True, "Group"),
        "dynamic_batching": (MESSAGE, False, "Batching"),
        "default_model_filename": (STRING, False, ""),
        "cc_model_filenames": (MESSAGE, True, "Pair"),
    },
}
ENUMS = {
    "DataType": ["TYPE_INVALID", "TYPE_BOOL", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_BF16"],
    "Kind": ["KIND_AUTO", "KIND_GPU"],
}


def schema() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MODEL_CONFIG.items():
        message = file.message_type.add(name=name)
        for number, (field, (kind, many, of)) in enumerate(fields.items(), 1):
            message.field.add(
                name=field, number=number, type=kind, label=3 if many else 1, type_name=f".triton.{of}" if of else None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.Config"))


CONFIG = schema()


def parse(text: str) -> Any:
    """Read a configuration as Triton does: unknown fields are errors."""
    return text_format.Parse(text, CONFIG())


def profile(name: str = "p", /, **shapes: tuple[list[int], list[int], list[int]]) -> dict[str, Any]:
    inputs = {key: dict(zip(("min", "opt", "max"), three, strict=True)) for key, three in shapes.items()}
    return {"name": name, "inputs": inputs}


def tensor(name: str, shape: list[int], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


def described(
    sm: str = "8.6", /, precision: str = "fp16", stack: str = "trt8.6-cuda12.0", compat: str = "none", **engine: Any
) -> Manifest:
    """Make a manifest of classic TensorRT."""
    base = manifest("toy", precision)
    suffix = "-ampere-plus" if compat != "none" else ""
    parts = {
        "inputs": [tensor("x", [-1, 3, 32, 32])],
        "outputs": [tensor("y", [-1, 10])],
        "profiles": [profile(x=([1, 3, 32, 32], [4, 3, 32, 32], [8, 3, 32, 32]))],
        **engine,
    }
    return base.model_copy(
        update={
            "job": f"toy-{precision}-{stack}-sm{sm.replace('.', '')}{suffix}",
            "stack": base.stack.model_copy(update={"name": stack, "tensorrt": stack[3 : stack.index("-")] + ".0"}),
            "target": base.target.model_copy(update={"sms": [sm]}),
            "build": base.build.model_copy(update={"options": {"hardware_compatibility": compat}}),
            "engine": base.engine.model_copy(update=parts),
        }
    )


def config(**engine: Any) -> Any:
    (model,) = repository([described(**engine)])
    return parse(model.config)


def test_a_batched_model() -> None:
    found = config()
    assert (found.name, found.platform, found.max_batch_size) == ("toy-fp16", "tensorrt_plan", 8)
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [("x", 5, [3, 32, 32])]
    assert [(one.name, list(one.dims)) for one in found.output] == [("y", [10])]
    assert found.HasField("dynamic_batching")
    assert [(group.kind, group.count, list(group.profile)) for group in found.instance_group] == [(1, 1, [])]
    assert {pair.key: pair.value for pair in found.cc_model_filenames} == {"8.6": "sm86.plan"}
    assert found.default_model_filename == ""


@pytest.mark.parametrize(
    ("engine", "batch"),
    [
        # the first axis is fixed
        ({"inputs": [tensor("x", [1, -1])], "outputs": [tensor("y", [1, -1])]}, 0),
        # an output has no batch
        ({"outputs": [tensor("y", [10])]}, 0),
        # a batch of one is not taken
        ({"profiles": [profile(x=([2, 3, 32, 32], [4, 3, 32, 32], [8, 3, 32, 32]))]}, 0),
        # two inputs that do not grow alike
        (
            {
                "inputs": [tensor("x", [-1, 4]), tensor("z", [-1, 4])],
                "profiles": [profile(x=([1, 4], [1, 4], [8, 4]), z=([1, 4], [1, 4], [4, 4]))],
            },
            0,
        ),
        ({"profiles": []}, 0),
        # the larger of two profiles
        (
            {
                "profiles": [
                    profile("small", x=([1, 3, 32, 32], [1, 3, 32, 32], [2, 3, 32, 32])),
                    profile("large", x=([1, 3, 32, 32], [16, 3, 32, 32], [32, 3, 32, 32])),
                ]
            },
            32,
        ),
        ({"profiles": [profile(x=([1, 3, 32, 32], [1, 3, 32, 32], [1, 3, 32, 32]))]}, 1),
    ],
)
def test_batches(engine: dict[str, Any], batch: int) -> None:
    found = config(**engine)
    assert found.max_batch_size == batch
    assert found.HasField("dynamic_batching") == (batch > 1)


def test_without_a_batch_all_axes_are_named() -> None:
    shape = {"mel": ([1, 100, 64], [1, 100, 256], [1, 100, 512])}
    engine = {"inputs": [tensor("mel", [1, 100, -1])], "outputs": [tensor("real", [1, 513, -1])]}
    found = config(**engine, profiles=[profile(**shape)])
    assert (list(found.input[0].dims), list(found.output[0].dims)) == ([1, 100, -1], [1, 513, -1])


def test_tensors_without_further_axes_are_reshaped() -> None:
    shapes = {"x": ([1, 4], [2, 4], [8, 4]), "lengths": ([1], [2], [8])}
    inputs = [tensor("x", [-1, 4]), tensor("lengths", [-1], "int64")]
    found = config(inputs=inputs, outputs=[tensor("y", [-1], "bfloat16")], profiles=[profile(**shapes)])
    assert found.max_batch_size == 8
    assert [(list(one.dims), one.HasField("reshape")) for one in found.input] == [([4], False), ([1], True)]
    assert list(found.input[1].reshape.shape) == []
    assert (found.input[1].data_type, found.output[0].data_type) == (3, 6)


def test_all_shape_profiles_are_named() -> None:
    rows = [(1, 1, 1), (1, 4, 8), (1, 16, 32)]
    profiles = [profile(str(n), x=([a, 3, 32, 32], [b, 3, 32, 32], [c, 3, 32, 32])) for n, (a, b, c) in enumerate(rows)]
    found = config(profiles=profiles)
    assert list(found.instance_group[0].profile) == ["0", "1", "2"]
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 16]


def test_names_are_quoted() -> None:
    odd = 'save/scale_0.tmp_1 "\\\n'
    assert config(outputs=[tensor(odd, [-1, 2])]).output[0].name == odd


def test_an_unknown_type_is_refused() -> None:
    engine = described(outputs=[tensor("y", [-1, 2], "fp8")])
    assert refusal(lambda: repository([engine])).reason is Reason.PRECISION_UNSUPPORTED


def test_a_tensor_without_axes_needs_a_batch() -> None:
    error = refusal(lambda: repository([described(outputs=[tensor("y", [-1, 10]), tensor("rate", [])])]))
    assert error.reason is Reason.OPTION_UNSUPPORTED
    assert "rate" in error.what


def test_engines_of_several_sms_are_one_model() -> None:
    engines = [described("9.0"), described("8.6"), described("8.0", compat="ampere_plus"), described("12.0")]
    (model,) = repository(engines)
    found = parse(model.config)
    assert [(pair.key, pair.value) for pair in found.cc_model_filenames] == [
        ("8.6", "sm86.plan"),
        ("9.0", "sm90.plan"),
        ("12.0", "sm120.plan"),
    ]
    assert found.default_model_filename == "model.plan"
    assert model.files["model.plan"].endswith("sm80-ampere-plus")
    assert set(model.files) == {"sm86.plan", "sm90.plan", "sm120.plan", "model.plan"}


def test_precisions_are_models_of_their_own() -> None:
    models = repository([described(), described(precision="fp32")])
    assert [model.name for model in models] == ["toy-fp16", "toy-fp32"]


def test_two_tensorrts_do_not_mix() -> None:
    engines = [described(), described("9.0", stack="trt10.9-cuda12.8")]
    error = refusal(lambda: repository(engines))
    assert error.reason is Reason.OPTION_UNSUPPORTED
    assert "--name '*-trt10.9-cuda12.8-*'" in (error.fix or "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"platform": "linux/arm64", "name": "l4t36.4-trt8.6"}, "platform linux/amd64, linux/arm64"),
        ({"cuda": "11.8", "name": "trt8.6-cuda11.8"}, "CUDA 11, 13"),
    ],
)
def test_platforms_and_cudas_do_not_mix(change: dict[str, str], says: str) -> None:
    first, other = described("8.6"), described("8.7")
    other = other.model_copy(update={"stack": other.stack.model_copy(update=change)})
    error = refusal(lambda: repository([first, other]))
    assert (error.reason, says in error.what) == (Reason.OPTION_UNSUPPORTED, True)
    assert change["name"] in (error.fix or "")


@pytest.mark.parametrize(
    "options", [{"hardware_compatibility": "same_compute_capability"}, {"version_compatible": True}], ids=str
)
@pytest.mark.parametrize("suffix", ["-a", ""])
def test_of_two_engines_for_one_sm_the_fastest_stays(options: dict[str, Any], suffix: str) -> None:
    tuned = described("8.6")
    tuned = tuned.model_copy(update={"job": f"{tuned.job}{suffix and '-z'}"})
    wide = tuned.model_copy(
        update={"job": f"{tuned.job}-a", "build": tuned.build.model_copy(update={"options": options})}
    )
    for pair in ([tuned, wide], [wide, tuned]):
        (model,) = repository(pair)
        assert dict(model.files) == {"sm86.plan": tuned.job}


@pytest.mark.parametrize("part", ["inputs", "outputs", "profiles"])
def test_engines_of_another_recipe_do_not_mix(part: str) -> None:
    other: Any = {
        "inputs": [tensor("x", [-1, 3, 64, 64])],
        "outputs": [tensor("z", [-1, 10])],
        "profiles": [profile(x=([1, 3, 32, 32], [1, 3, 32, 32], [1, 3, 32, 32]))],
    }[part]
    error = refusal(lambda: repository([described(), described("9.0", **{part: other})]))
    assert error.reason is Reason.INPUTS_CHANGED
    assert part in error.what


def test_tensorrt_rtx_is_refused() -> None:
    assert refusal(lambda: repository([manifest()])).reason is Reason.OPTION_UNSUPPORTED


def put(store: Store, made: Manifest) -> Entry:
    """Put an engine into a store."""
    key, proof = (make_key(kind, {"job": made.job}) for kind in ("engine", "proof"))
    files: dict[str, Path | bytes] = {
        ENGINE: made.job.encode(),
        MANIFEST: made.to_json().encode(),
        KEY: canonical(key.document),
    }
    return store.add(kind="engine", key=key.sha256, name=made.job, files=files, annotations={"proof": proof.sha256})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    made = Store(tmp_path / "home" / "store")
    for one in (described(), described("9.0"), described("8.0", compat="ampere_plus")):
        put(made, one)
    add_engine(made, "tiny")
    return made


def export(store: Store, folder: Path) -> list[bool]:
    return [item.written for item in export_triton(store, servable(store, choose_engines(store, ())), folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_repository_on_the_disk(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "models"
    assert export(store, out) == [True]
    found = contents(out)
    names = {"model.plan", "sm86.plan", "sm90.plan"}
    expected = {f"toy-fp16/1/{name}" for name in names} | {f"toy-fp16/manifests/{name[:-5]}.json" for name in names}
    assert set(found) == expected | {"toy-fp16/config.pbtxt"}
    assert found["toy-fp16/1/sm90.plan"] == b"toy-fp16-trt8.6-cuda12.0-sm90"
    assert json.loads(found["toy-fp16/manifests/sm90.json"])["target"]["sms"] == ["9.0"]
    assert parse(found["toy-fp16/config.pbtxt"].decode()).default_model_filename == "model.plan"
    assert export(store, out) == [False]
    assert contents(out) == found
    assert [path.name for path in out.iterdir()] == ["toy-fp16"]


@pytest.mark.parametrize("damage", ["1/sm86.plan", "manifests/sm86.json", "extra"])
def test_what_is_not_as_it_was_is_written_again(store: Store, tmp_path: Path, damage: str) -> None:
    export(store, tmp_path / "models")
    found = contents(tmp_path / "models")
    (tmp_path / "models" / "toy-fp16" / damage).write_bytes(b"!")
    assert export(store, tmp_path / "models") == [True]
    assert contents(tmp_path / "models") == found


@pytest.mark.parametrize("what", ["edited", "foreign", "file", "link"])
def test_what_people_wrote_is_left_alone(store: Store, tmp_path: Path, what: str) -> None:
    model = tmp_path / "models" / "toy-fp16"
    if what == "edited":
        export(store, tmp_path / "models")
        text = (model / "config.pbtxt").read_text(encoding="utf-8")
        (model / "config.pbtxt").write_text(re.sub("count: 1", "count: 2", text), encoding="utf-8")
    elif what == "foreign":
        model.mkdir(parents=True)
        (model / "config.pbtxt").write_text("# mine\n", encoding="utf-8")
    else:
        model.parent.mkdir()
        model.touch() if what == "file" else model.symlink_to(tmp_path)
    before = contents(tmp_path / "models")
    assert refusal(lambda: export(store, tmp_path / "models")).reason is Reason.PATH_OCCUPIED
    assert contents(tmp_path / "models") == before


def test_a_configuration_knows_itself() -> None:
    (model,) = repository([described()])
    assert is_own_config(model.config.encode())
    assert not is_own_config(model.config.encode() + b"\n")
    assert not is_own_config(b"")


def test_the_command(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--triton", str(tmp_path / "models")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(str(tmp_path / "models" / "toy-fp16"))
    assert "1 model written, 0 there already; 1 engine left out that Triton cannot load" in captured.err
    assert main(["export", "--triton", str(tmp_path / "models"), "--name", "toy-*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["written"], row["needs_host_code"]) == ("toy-fp16", False, False)
    assert row["files"]["sm90.plan"] == "toy-fp16-trt8.6-cuda12.0-sm90"


def test_nothing_for_triton_is_refused(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--triton", str(tmp_path / "models"), "--name", "tiny-*"]) == 4
    assert "EF-203" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_host_code_is_said(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, described("8.9", precision="fp32", needs_host_code=True))
    assert main(["export", "--triton", str(tmp_path / "models")]) == 0
    assert "toy-fp32 carries code for the host" in capsys.readouterr().err
