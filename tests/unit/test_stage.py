"""What a worker's end means."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import Reason
from builder.process import Outcome
from builder.stage import StageRequest, collect
from tests.artifacts import refusal


@pytest.mark.parametrize(
    ("free", "said", "reason"),
    [
        (1 << 30, "Killed", Reason.WORKER_DIED),
        (1 << 30, "MemoryError", Reason.OUT_OF_MEMORY),
        (4096, "", Reason.DISK_FULL),
    ],
)
def test_worker_without_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str, reason: Reason
) -> None:
    """On a full disk nothing is left to read: neither a result nor a log."""
    monkeypatch.setattr("builder.host.free_disk_bytes", lambda _: free)
    request = StageRequest(job="tiny", stage="lower", inputs={}, params={}, folder=tmp_path, timeout_s=1.0)
    request.log.write_text(said, encoding="utf-8")
    outcome = Outcome(
        argv=("python",),
        exit_code=1,
        signal=None,
        duration_s=0.1,
        log=request.log,
        max_rss_bytes=0,
        timed_out=False,
        cancelled=False,
    )
    assert refusal(lambda: collect(request, outcome)).reason is reason
