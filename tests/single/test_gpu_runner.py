"""scripts/gpu_runner.py: no stage stops the others or outlives its time, and nothing that one started outlives it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from gpu_runner import Runner, Stage  # noqa: E402


def shell(tmp_path: Path, script: str, seconds: float = 60, **choices: object) -> Stage:
    return Stage("stage", ["sh", "-c", script], tmp_path, seconds, **choices)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("script", "result", "reason"), [("true", "passed", ""), ("exit 3", "failed", "exit code 3")])
def test_exit_code_decides(script: str, result: str, reason: str, tmp_path: Path) -> None:
    outcome = Runner(tmp_path / "log", 60).run(shell(tmp_path, script))
    assert (outcome.result, outcome.reason, outcome.is_failure) == (result, reason, result != "passed")


def test_output_goes_to_the_log_and_its_end_to_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(tmp_path / "log", 60)
    runner.run(
        shell(tmp_path, "for i in $(seq 100); do echo line $i.; done; echo $WHAT >&2", variables={"WHAT": "set"})
    )
    printed = capsys.readouterr().out
    assert "line 100." in printed and "line 1." not in printed
    log = (tmp_path / "log").read_text()
    assert "line 1." in log and log.endswith("set\n")


def test_a_command_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    outcome = Runner(tmp_path / "log", 60).run(Stage("stage", [str(tmp_path / "none")], tmp_path, 60))
    assert (outcome.result, outcome.reason) == ("failed", "exit code 127")
    assert "No such file" in (tmp_path / "log").read_text()


def test_a_stage_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    # A session of its own is what Horovod gives its workers.
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; trap : TERM; while :; do sleep 0.1; done' & wait"
    begin = time.monotonic()
    outcome = Runner(tmp_path / "log", 60).run(shell(tmp_path, script, seconds=3))
    assert (outcome.result, outcome.is_failure) == ("timed out", True)
    assert time.monotonic() - begin < 30
    # A busy machine may take a moment to carry the signal out.
    end = time.monotonic() + 10
    while alive(int((tmp_path / "pid").read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_stages_share_the_time_of_all(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "log", 1)
    assert runner.run(shell(tmp_path, "exec sleep 60")).result == "timed out"
    late = runner.run(shell(tmp_path, "true"))
    assert (late.result, late.reason, late.is_failure) == ("skipped", "the time of all stages is over", True)


@pytest.mark.parametrize("is_optional", [False, True])
def test_what_is_missing_fails_unless_it_is_optional(is_optional: bool, tmp_path: Path) -> None:
    stage = shell(tmp_path, "touch ran", missing="no tool", is_optional=is_optional)
    outcome = Runner(tmp_path / "log", 60).run(stage)
    assert (outcome.result, outcome.reason, outcome.is_failure) == ("skipped", "no tool", not is_optional)
    assert not (tmp_path / "ran").exists()
