"""Measures pushing and pulling a large artifact against the oras CLI, in turns; writes a Markdown table.

Usage: python benchmarks/registry.py [--rounds N] [--mib N] [--folder DIR] [--out FILE]. Needs docker-registry and oras.
DIR holds registry, store and what is pulled: 4 times the artifact.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder import artifact, oci
from builder.facts import facts_json
from builder.key import make_key
from builder.publish import choose_packages, parse_destination, push_engines
from builder.publish_seal import Seal
from builder.registry import Registry
from builder.store import Store
from tests.headed import Built, machine

ROOT = Path(__file__).parent.parent
BLOCK = 1 << 20
MODEL = Built().recipe
ACCEPTED = 0.9


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Run a registry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}"
    log = "log: {level: error, accesslog: {disabled: true}}"
    config.write_text(f"version: 0.1\n{log}\n{storage}\nhttp: {{addr: {address}}}\n", encoding="utf-8")
    process = subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL)
    host, _, port = address.partition(":")
    try:
        for _ in range(100):
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def make_store(folder: Path, mib: int) -> Store:
    """Make a store with one engine: the head of a real one, and random bytes."""
    built, plan = Built(), folder / "model.plan"
    with plan.open("wb") as out:
        out.write(built.content.ljust(BLOCK, b"\0"))
        for _ in range(mib - 1):
            out.write(os.urandom(BLOCK))
    digest = subprocess.run(["sha256sum", str(plan)], check=True, capture_output=True, text=True).stdout.split()[0]
    files: dict[str, Path | bytes] = {**built.files(), "model.plan": plan}
    described = json.loads(built.files()["manifest.json"])
    described["engine"] |= {"sha256": digest, "size": mib * BLOCK}
    described["proof"]["key"] = make_key("proof", {"engine": described["key"]}).sha256
    files["manifest.json"] = json.dumps(described).encode()
    (folder / "facts.json").write_text(facts_json(machine()), encoding="utf-8")
    store = Store(folder / "home" / "store")
    store.add(kind="engine", key=described["key"], name=built.job, files=files)
    return store


class Contest:
    """The artifact, and who moves it."""

    def __init__(self, folder: Path, address: str, store: Store) -> None:
        self.folder = folder
        self.address = address
        self.store = store
        (self.package,) = choose_packages(store, [])
        self.plan = folder / "model.plan"

    def push_oras(self, number: int) -> None:
        """Push the same files with oras."""
        reference = f"{self.address}/oras-{number}/{MODEL}:1"
        arguments = ["oras", "push", "--plain-http", "--no-tty", reference, "model.plan"]
        subprocess.run(arguments, check=True, cwd=self.folder, stdout=subprocess.DEVNULL)

    def push_library(self, number: int) -> None:
        """Push with all that belongs to it."""
        place = parse_destination(f"{self.address}/library-{number}", "1")
        seal = Seal(store=self.store, signer=None)
        push_engines([self.package], place, cancel=threading.Event(), listen=lambda _: None, seal=seal)

    def push_command(self, number: int) -> None:
        """Run the command, Python's start included."""
        self.command(self.store.root.parent, "push", f"{self.address}/command-{number}", "--tag", "1")

    def pull_oras(self, number: int) -> None:
        """Pull to an empty folder."""
        arguments = ["oras", "pull", "--plain-http", "--no-tty", f"{self.address}/oras-{number}/{MODEL}:1"]
        subprocess.run(arguments, check=True, cwd=self.out(), stdout=subprocess.DEVNULL)

    def pull_command(self, number: int) -> None:
        """Run the command with an empty home: choice, checks and store included."""
        facts = str(self.folder / "facts.json")
        name = f"{self.address}/command-{number}/{MODEL}:1"
        self.command(self.out(), "pull", name, "--facts", facts, "--allow-unsigned")

    def command(self, home: Path, *arguments: str) -> None:
        """Run `enginefarm` in a process of its own."""
        code = "import sys; from builder.cli import main; sys.exit(main(sys.argv[1:]))"
        env = os.environ | {"ENGINEFARM_HOME": str(home), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], check=False, env=env, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)

    def pull_library(self, number: int) -> None:
        """Fetch index, manifest and files, every digest checked."""
        out = self.out()
        name = f"library-{number}/{MODEL}"
        remote = Registry(self.address, name, cancel=threading.Event(), listen=lambda _: None)

        def read(reference: str, kind: str) -> bytes:
            found = remote.manifest(reference, (kind,))
            if found is None:
                sys.exit(f"{name} has no {reference}")
            return found[0]

        (entry,) = artifact.parse_index(read("1", oci.INDEX_TYPE), name, MODEL).entries
        parsed = artifact.parse_artifact(read(entry["digest"], oci.MANIFEST_TYPE), name)

        def fetch(title: str, described: oci.Document) -> Callable[[], None]:
            return lambda: remote.fetch(described, out / title)

        remote.together([fetch(title, described) for title, described in parsed.files.items()])

    def out(self) -> Path:
        """Return the folder to pull to."""
        return self.folder / "out"


def measure(action: Callable[[int], None], number: int, out: Path) -> float:
    """Time one transfer from a clean state."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    started = time.perf_counter()
    action(number)
    return time.perf_counter() - started


def run(contest: Contest, rounds: int) -> dict[str, list[float]]:
    """Let all take turns, each round in the other order; the first round warms up and does not count."""
    actions: dict[str, Callable[[int], None]] = {
        "push oras": contest.push_oras,
        "push library": contest.push_library,
        "push command": contest.push_command,
        "pull oras": contest.pull_oras,
        "pull library": contest.pull_library,
        "pull command": contest.pull_command,
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for verb in ("push", "pull"):
            names = [name for name in actions if name.startswith(verb)]
            for name in names if number % 2 else names[::-1]:
                taken = measure(actions[name], number, contest.out())
                if number:
                    seconds[name].append(taken)
                    print(f"{number} {name} {taken:.2f} s", file=sys.stderr)
    return seconds


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    """Return the throughput against that of oras in the same round."""
    base = seconds[f"{name.partition(' ')[0]} oras"]
    return [other / own for own, other in zip(seconds[name], base, strict=True)]


def table(seconds: dict[str, list[float]], mib: int) -> list[str]:
    """Lay the figures out."""
    labels = {
        "push oras": "push, `oras push`",
        "push library": "push, `push_engines` (with SBOM, provenance, index)",
        "push command": "push, `enginefarm push` (with the start of Python)",
        "pull oras": "pull, `oras pull`",
        "pull library": "pull, `Registry.fetch` of all files, digests checked",
        "pull command": "pull, `enginefarm pull` to the store (with the start of Python)",
    }
    lines = ["| | median s | MiB/s | throughput / oras: median | least | most |", "|---|---:|---:|---:|---:|---:|"]
    for name, label in labels.items():
        median = statistics.median(seconds[name])
        row = f"| {label} | {median:.2f} | {mib / median:.0f} |"
        if name.endswith("oras"):
            lines.append(f"{row} 1 | | |")
        else:
            found = ratios(seconds, name)
            lines.append(f"{row} {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    return lines


def version(*command: str) -> str:
    """First line of what a program says of itself."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return " ".join((done.stdout or done.stderr).splitlines()[0].split())


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "registry.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="registry-") as name:
        folder = Path(name)
        store = make_store(folder, asked.mib)
        with serve(folder) as address:
            seconds = run(Contest(folder, address, store), asked.rounds)
    filesystem = version("stat", "-f", "-c", "%T", str(asked.folder))
    head = [
        "# Registries",
        "",
        f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}, {platform.system()} {platform.release()},",
        f"{len(os.sched_getaffinity(0))} processors, Python {platform.python_version()}, files on {filesystem}.",
        f"oras {version('oras', 'version').removeprefix('Version: ')}, {version('docker-registry', '--version')}.",
        f"`python {' '.join(['benchmarks/registry.py', *sys.argv[1:]])}`.",
        "",
        f"An artifact of {asked.mib} MiB to and from a registry on the same machine, by turns, {asked.rounds} rounds,",
        "another order each time. Ratios are of the same round; above 1 is faster than oras.",
        "",
    ]
    asked.out.write_text("\n".join([*head, *table(seconds, asked.mib)]) + "\n", encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))
    medians = [statistics.median(ratios(seconds, name)) for name in seconds if not name.endswith("oras")]
    return 0 if min(medians) >= ACCEPTED else 1


if __name__ == "__main__":
    sys.exit(main())
