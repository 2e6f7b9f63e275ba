"""The live view under a pseudo-terminal: keys, resizing, Ctrl-Z and back, death; the terminal is always as before."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from launcher import faulty, fork, gone, run, session
from rich.console import Console
from rich.text import Text
from states import facts, monitor, sample

from stepahead.launch import viewer
from stepahead.launch.broadcast import Publisher, Subscriber, is_broadcast, is_measured
from stepahead.launch.cli import main
from stepahead.launch.monitor import Monitor
from stepahead.launch.recording import Recording, RecordingError
from stepahead.launch.viewer import find_run, find_with
from stepahead.workers import listen

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Screen:
    """A command on a terminal of its own, and what it wrote there."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid = pid
        self.master = master
        self.written = b""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        resize(self.master, columns, lines)

    def read_until(self, words: str | Callable[[bytes], bool], seconds: float = 20.0) -> bytes:
        """Read on until this was written after what was there before, and return what was new."""
        before, deadline = len(self.written), time.monotonic() + seconds
        while not (words(self.written[before:]) if callable(words) else words.encode() in self.written[before:]):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"never saw {words!r} in {self.written[before:][-3000:]!r}")
        return self.written[before:]

    def read_to_the_end(self, seconds: float = 30.0) -> int:
        """Read all that comes, and return the exit code."""
        deadline = time.monotonic() + seconds
        while not gone(self.pid, 0.0):
            assert time.monotonic() < deadline
            self._read(0.1)
        while self._read(0.1):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.master)

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(timeout, 0.0))
        try:
            new = os.read(self.master, 65536) if ready else b""
        except OSError:  # nobody has the terminal any more
            return False
        self.written += new
        return bool(new)


def resize(terminal: int, columns: int, lines: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def on_a_terminal(arguments: Sequence[str], **environment: str) -> AbstractContextManager[Screen]:
    """Run the command on a terminal of its own."""
    return terminal_of(lambda: main(arguments), environment)


@contextmanager
def terminal_of(work: Callable[[], object], environment: Mapping[str, str]) -> Generator[Screen]:
    """Work in a process on a terminal of 100 columns; kill all of its session in the end."""
    pid, master = fork(pty.fork)
    if pid == 0:
        code = 1
        try:
            for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm-256color", **environment})
            resize(1, 100, 24)  # before the command looks, however late its parent gets its turn
            _take_over_standard_files()
            os.closerange(3, 256)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    screen = Screen(pid, master)
    try:
        yield screen
    finally:
        for member in session(pid):
            os.kill(member, signal.SIGKILL)
        os.close(master)


def _take_over_standard_files() -> None:
    """Let Python's standard files be the terminal, and not what pytest made of them."""

    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115


def long_run(folder: Path, act: str = "none", *more: str) -> list[str]:
    return faulty(folder, act, 1, 400, "--steps", "100000", "--baseline", "none", *more)


def test_the_view_is_left_and_training_goes_on(tmp_path: Path) -> None:
    with on_a_terminal(long_run(tmp_path / "run")) as screen:
        before = screen.settings()
        screen.read_until(lambda seen: ENTER in seen and b"running" in seen)
        assert screen.settings() != before
        screen.type("h")
        screen.read_until("what plain backprop does too")
        screen.type("h")
        screen.read_until("idle mostly for")
        screen.type("1")
        screen.read_until("of the gradient's length")
        screen.type("\x1b[B")
        screen.read_until("2 on cpu")
        screen.type("\x1b")
        screen.resize(60, 12)
        screen.read_until(lambda seen: "cosine  state" in frame(seen) and "device" not in frame(seen))
        screen.type("s")
        screen.read_until("saved")
        assert len(list((tmp_path / "run").glob("view-*.svg"))) == 1
        screen.type("p")
        screen.read_until("paused")
        screen.type("p")
        screen.type("q")
        screen.read_until(lambda seen: LEAVE in seen and b"step " in seen.rpartition(LEAVE)[2])
        assert screen.settings() == before
        screen.type("\x03")
        assert screen.read_to_the_end() == 130
        assert b"weights: " in screen.written
        assert screen.settings() == before


def test_ctrl_c_in_the_view_ends_the_run_in_order(tmp_path: Path) -> None:
    with on_a_terminal(long_run(tmp_path / "run")) as screen:
        before = screen.settings()
        screen.read_until("running")
        screen.type("\x03")
        assert screen.read_to_the_end() == 130
        after = screen.written.rpartition(LEAVE)[2]
        assert b"interrupted: the workers finish" in after
        assert b"weights: " in after
        assert screen.settings() == before


def test_the_end_of_the_run_ends_the_view(tmp_path: Path) -> None:
    with on_a_terminal(faulty(tmp_path / "run", "none", 0, 5, "--steps", "800", "--baseline", "none")) as screen:
        before = screen.settings()
        assert screen.read_to_the_end() == 0
        assert ENTER in screen.written
        assert b"done after 800 steps" in screen.written.rpartition(LEAVE)[2]
        assert screen.settings() == before


def test_a_lost_worker_is_named_below_the_view(tmp_path: Path) -> None:
    with on_a_terminal(long_run(tmp_path / "run", "kill")) as screen:
        before = screen.settings()
        assert screen.read_to_the_end() == 3
        assert b"stage 1 was killed by SIGKILL" in screen.written.rpartition(LEAVE)[2]
        assert screen.settings() == before


def frame(seen: bytes) -> str:
    """Return the last frame that was shown whole."""
    frames = re.findall(rb"\x1b\[H(.*?)\x1b\[J", seen, re.DOTALL)
    return frames[-1].decode() if frames else ""


def viewer_of(launcher: int) -> int:
    """Return the process that shows the run: the child with the highest number, for it was started last."""
    return max(pid for pid in session(launcher) if pid != launcher)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_view_that_dies_leaves_the_terminal_right_and_the_run_alone(tmp_path: Path, number: signal.Signals) -> None:
    with on_a_terminal(long_run(tmp_path / "run")) as screen:
        before = screen.settings()
        screen.read_until("running")
        os.kill(viewer_of(screen.pid), number)
        screen.read_until(lambda seen: LEAVE in seen and b"step " in seen.rpartition(LEAVE)[2])
        assert screen.settings() == before
        os.kill(screen.pid, signal.SIGINT)
        assert screen.read_to_the_end() == 130


def test_a_launcher_that_is_killed_takes_the_view_along(tmp_path: Path) -> None:
    with on_a_terminal(long_run(tmp_path / "run")) as screen:
        before = screen.settings()
        screen.read_until("running")
        viewer = viewer_of(screen.pid)
        os.kill(screen.pid, signal.SIGKILL)
        screen.read_until(lambda seen: LEAVE in seen, 5.0)
        assert gone(viewer, 2.0)
        assert screen.settings() == before


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(tmp_path: Path) -> None:
    with on_a_terminal(long_run(tmp_path / "run")) as screen:
        before = screen.settings()
        screen.read_until("running")
        screen.type("\x1a")
        screen.read_until(lambda seen: LEAVE in seen)
        _, status = os.waitpid(screen.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert screen.settings() == before
        os.killpg(screen.pid, signal.SIGCONT)
        screen.read_until(lambda seen: ENTER in seen and b"running" in seen)
        assert screen.settings() != before
        screen.type("\x03")
        assert screen.read_to_the_end() == 130
        assert screen.settings() == before


@contextmanager
def a_shell() -> Generator[Screen]:
    """Run an interactive bash, which stops, continues and moves its jobs as people's shells do."""
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with terminal_of(lambda: os.execvp("bash", shell), {"PS1": "ready> "}) as screen:
        screen.read_until("ready> ")
        yield screen


def command_for(folder: Path) -> str:
    return shlex.join([sys.executable, "-m", "stepahead.launch", *long_run(folder / "run")])


def send_to_the_background(screen: Screen, command: str) -> None:
    """Start a command, stop it when its view is there, and let it go on behind the shell."""
    screen.type(f"{command}\n")
    screen.read_until("running")
    screen.type("\x1a")
    screen.read_until(lambda seen: b"Stopped" in seen and b"ready> " in seen)
    screen.type("bg\n")
    screen.read_until(lambda seen: re.search(rb"step \d+/\d+ loss", seen) is not None)


def test_ctrl_z_and_then_bg_goes_on_in_lines_and_fg_in_the_view(tmp_path: Path) -> None:
    with a_shell() as screen:
        send_to_the_background(screen, command_for(tmp_path))
        assert screen.written.count(ENTER) == screen.written.count(LEAVE) == 1
        screen.type("fg\n")
        screen.read_until(lambda seen: b"running" in seen.rpartition(LEAVE)[2].rpartition(ENTER)[2])
        assert screen.written.count(ENTER) == 2
        screen.type("\x03")
        screen.read_until(lambda seen: b"ready> " in seen.partition(LEAVE)[2])
        screen.type("echo ended with $?\n")
        screen.read_until("ended with 130")
    assert screen.written.count(ENTER) == screen.written.count(LEAVE) == 2


def test_a_run_that_began_in_the_background_comes_to_the_front(tmp_path: Path) -> None:
    with a_shell() as screen:
        screen.type(f"{command_for(tmp_path)} &\n")
        screen.read_until(lambda seen: re.search(rb"step \d+/\d+ loss", seen) is not None)
        assert ENTER not in screen.written
        screen.type("fg\n")
        screen.read_until(lambda seen: b"running" in seen.partition(ENTER)[2])
        screen.type("\x03")
        screen.read_until(lambda seen: b"ready> " in seen.partition(LEAVE)[2])
        screen.type("stty\n")
        assert b"-echo" not in screen.read_until("ready> ")


def test_a_run_that_ends_in_the_background_leaves_the_terminal_alone(tmp_path: Path) -> None:
    with a_shell() as screen:
        send_to_the_background(screen, command_for(tmp_path))
        screen.type("kill -INT %1; wait %1; echo ended with $?\n")
        screen.read_until("ended with 130")
    assert screen.written.count(ENTER) == screen.written.count(LEAVE) == 1


@pytest.mark.parametrize(("more", "environment"), [([], {"TERM": "dumb"}), (["--view", "lines"], {})])
def test_lines_where_no_view_is_wanted_or_can_be_had(
    more: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = faulty(tmp_path / "run", "none", 0, 5, "--steps", "50", "--baseline", "none", *more)
    with on_a_terminal(arguments, **environment) as screen:
        assert screen.read_to_the_end() == 0
    assert b"step " in screen.written
    assert b"\x1b[?" not in screen.written
    assert b"\x1b[H" not in screen.written


@pytest.mark.parametrize(("environment", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_no_color_takes_the_colours_and_leaves_the_view(
    environment: dict[str, str], coloured: bool, tmp_path: Path
) -> None:
    with on_a_terminal(long_run(tmp_path / "run"), **environment) as screen:
        shown = frame(screen.read_until(lambda seen: "running" in frame(seen)))
        assert ("\x1b[90m" in shown) == coloured
        screen.type("\x03")
        assert screen.read_to_the_end() == 130


def test_top_shows_a_run_from_another_terminal(tmp_path: Path) -> None:
    with publishing(tmp_path), on_a_terminal(["top", str(tmp_path)]) as screen:
        seen = screen.read_until(lambda seen: b"lockstep" in seen, 10.0)
        assert ENTER in seen
        screen.type("q")
        assert screen.read_to_the_end() == 0
        assert LEAVE in screen.written


@contextmanager
def publishing(folder: Path) -> Generator[None]:
    """Publish a made-up run from a process of its own until the end."""
    pid = fork()
    if pid == 0:
        publisher = Publisher(folder)
        while True:
            publisher.send(monitor(4).state())
            time.sleep(0.05)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_viewer_that_stalls_misses_states_and_holds_nobody_up(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    try:
        with Subscriber(tmp_path) as stalled, Subscriber(tmp_path) as other:
            state = monitor(64).state()
            deadline = time.monotonic() + 10
            while other.newest() is None and time.monotonic() < deadline:
                publisher.send(state)
            begun = time.monotonic()
            for _ in range(300):
                publisher.send(state)
            assert time.monotonic() - begun < 5
            state.step = 12345
            while (newest := other.newest()) is None or newest.step != 12345:
                publisher.send(state)
                assert time.monotonic() < deadline + 30
            assert stalled.newest() is not None
    finally:
        publisher.close()
    assert not (tmp_path / "telemetry.sock").exists()


def test_playback_shows_a_recorded_run_again(tmp_path: Path) -> None:
    made = Monitor(facts(2))
    recording = Recording(tmp_path, made.facts)
    for tick in range(40):
        recording.add(tick / 4, [sample(tick / 4, 0), sample(tick / 4, 1, last=True)], made)
    recording.close("done")
    with on_a_terminal(["playback", str(tmp_path), "--speed", "20"]) as screen:
        assert screen.read_to_the_end() == 0
        assert ENTER in screen.written
        assert b"step 390/800" in screen.written.rpartition(LEAVE)[2]
        assert b"done" in screen.written.rpartition(LEAVE)[2]


def test_a_paused_playback_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Monitor(facts(1))
    recording = Recording(tmp_path, made.facts)
    for tick in range(6):
        recording.add(tick, [sample(tick, last=True)], made)
    recording.close("done")
    terminal = KeyedTerminal({1.5: "p", 31.5: "p"})
    monkeypatch.setattr(viewer, "Terminal", lambda console: terminal)
    monkeypatch.setattr(viewer, "is_usable", lambda console: True)
    monkeypatch.setattr(viewer, "is_ours", lambda: True)
    monkeypatch.setattr(viewer, "time", terminal)
    viewer.playback(tmp_path, Console(file=io.StringIO()), speed=1.0)
    assert terminal.monotonic() == pytest.approx(5 + 30, abs=0.2)  # the seconds of the recording, and the pause
    assert list(dict.fromkeys(terminal.steps)) == [f"step {40 * tick}/800" for tick in range(5)]


class KeyedTerminal:
    """A terminal on which keys are pressed at certain seconds of a clock that moves only while somebody waits."""

    size = (80, 24)
    ended = away = False

    def __init__(self, keys: dict[float, str]) -> None:
        self.keys = keys
        self.now = 0.0
        self.console = Console(file=io.StringIO())
        self.steps: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def show(self, lines: Sequence[Text]) -> None:
        found = re.search(r"step [\d,]+/\d+", lines[0].plain)
        self.steps.append(found[0] if found else "")

    def wait(self, timeout: float) -> list[str]:
        before, self.now = self.now, self.now + max(timeout, 0.001)
        return [key for second, key in self.keys.items() if before < second <= self.now]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("command", ["top", "playback", "report"])
def test_viewers_do_not_import_torch_and_need_no_terminal(command: str, tmp_path: Path) -> None:
    made = Monitor(facts(1))
    recording = Recording(tmp_path, made.facts)
    for tick in range(8):
        recording.add(tick, [sample(tick, last=True)], made)
    recording.close("done")
    check = "import sys\nfrom stepahead.launch.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", check, command, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.endswith("False\n")
    assert "Traceback" not in done.stderr
    said = {
        "top": "says nothing: it has ended, or was killed",
        "playback": "step 280/800",
        "report": "has no summary.json: its launcher did not come to an end; stepahead playback",
    }
    assert said[command] in done.stdout + done.stderr


def test_which_run_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordingError, match=r"no run under runs/ has a summary.json; name the folder of one"):
        find_with(None, "summary.json")
    with pytest.raises(RecordingError, match="there is no run folder nowhere"):
        find_with(Path("nowhere"), "summary.json")
    for number, name in enumerate(("old", "new", "newest")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
        os.utime(folder / "config.toml", (number, number))
        if name != "newest":
            (folder / "summary.json").touch()
    (tmp_path / "runs" / "old" / "report.html").touch()  # made again: the run is as old as before
    assert find_with(None, "summary.json") == Path("runs/new")


def test_the_socket_that_a_killed_run_left_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("alive", "killed")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
        os.utime(folder / "config.toml", (number, number))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind("runs/killed/telemetry.sock")
        left.listen()
    with pytest.raises(RecordingError, match=r"no run under runs/ is going on; name the folder of one"):
        find_run(None, is_broadcast, "is going on")
    (tmp_path / "runs" / "alive" / "baseline").mkdir()
    assert not is_measured(Path("runs/alive"))
    with listen(Path("runs/alive/baseline")):
        assert is_measured(Path("runs/alive"))
    publisher = Publisher(Path("runs/alive"))
    assert find_run(None, is_broadcast, "is going on") == Path("runs/alive")
    publisher.close()


@pytest.mark.parametrize("speed", ["0", "-1", "nan"])
def test_a_speed_that_cannot_be_is_refused(speed: str, tmp_path: Path) -> None:
    Recording(tmp_path, facts(1)).close("done")
    code, text = run(["playback", str(tmp_path), "--speed", speed])
    assert code == 2
    assert "it must be above 0" in text
