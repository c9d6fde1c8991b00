"""`tahoe` run as a user runs it: real processes, watched by what they print, hurt by signals."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE_S = 100


@dataclass
class Started:
    """A `tahoe` command that is running; its output is read as it comes."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> str:
        """Return the first line that has the text in it; fail if the output ends without."""
        assert self.process.stdout is not None
        timer = threading.Timer(DEADLINE_S, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                self.lines.append(line)
                if text in line:
                    return line
        finally:
            timer.cancel()
        raise AssertionError(f"ended without {text!r}:\n{self.output}")

    def rank_pids(self) -> list[int]:
        """Return the process ids of the ranks, in their order."""
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill_ranks(self) -> None:
        """End all ranks as a power cut would."""
        for pid in self.rank_pids():
            os.kill(pid, signal.SIGKILL)

    def finish(self) -> int:
        """Read the rest of the output and return the exit code."""
        try:
            output, _ = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill_ranks()
            self.process.kill()
            raise
        self.lines.append(output)
        return self.process.returncode


@dataclass(frozen=True)
class Tahoe:
    """The `tahoe` command in a working directory, which modules can be imported from."""

    cwd: Path

    def __call__(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        done = subprocess.run(
            self._command(arguments),
            cwd=self.cwd,
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str) -> Started:
        """Start a command; it is in a session of its own, like one of another terminal."""
        process = subprocess.Popen(
            self._command(arguments),
            cwd=self.cwd,
            env=self._environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return Started(process)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli.main", *arguments]

    def _environ(self) -> dict[str, str]:
        path = [str(self.cwd), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
