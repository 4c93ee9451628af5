"""The control socket: real sockets, and real processes where one dies or is another user's."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import control
from pipeline.control import Call, ControlServer, Handler, Reply, ask
from pipeline.errors import ArticleNotFound, InvalidInput, InvalidSetting, NotReady, YeoulError

_ROOT = Path(__file__).parent.parent
_NOBODY = 65534  # the user id of `nobody`
_SOON = 50.0  # seconds: an event that does not come in this time never comes; below `control._WRITE_SECONDS`
_SOCKET = "control.sock"

_SERVES = """
import sys
from pathlib import Path
from pipeline.control import ControlServer

def work(arguments, call):
    call.tell("begun")
    call.cancelled.wait()
    return 1

server = ControlServer(Path(sys.argv[1]), {"work": work, "add": lambda given, call: given["a"] + given["b"]})
server.start()
print("listens", flush=True)
sys.stdin.read()
"""

_ASKS_AS_NOBODY = """
import os, sys
from pathlib import Path
from pipeline.control import ask
from pipeline.errors import YeoulError
os.seteuid(int(sys.argv[2]))
try:
    print(ask(Path(sys.argv[1]), "greet", {}, tell=print, warn=print, timeout=120))
except YeoulError as error:
    print(type(error).__name__, error)
"""

Serve = Callable[..., ControlServer]
Start = Callable[[Path], subprocess.Popen[str]]


@dataclass(slots=True)
class Caller:
    """Asks, and keeps what it is told."""

    folder: Path
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    def ask(self, command: str, timeout: float | None = _SOON, **arguments: Any) -> Reply | None:
        return ask(self.folder, command, arguments, tell=self.out.append, warn=self.err.append, timeout=timeout)

    def refused(self, command: str, timeout: float | None = _SOON, **arguments: Any) -> YeoulError:
        with pytest.raises(YeoulError) as caught:
            self.ask(command, timeout, **arguments)
        return caught.value


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[ControlServer] = []

    def start(handlers: Mapping[str, Handler], folder: Path = tmp_path, **seconds: float) -> ControlServer:
        server = ControlServer(folder, handlers, **seconds)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture
def serving_process() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _SERVES, str(folder)]
        process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def _slow_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests may take their time to come; the limit for them is set all the same, on what comes after."""
    request_line = control._request_line

    def patient(connection: socket.socket, seconds: float) -> bytes:
        line = request_line(connection, _SOON)
        connection.settimeout(seconds)
        return line

    monkeypatch.setattr(control, "_request_line", patient)


def greet(_arguments: Mapping[str, Any], call: Call) -> int:
    call.tell("안녕")
    return 0


class Waiting:
    """A handler that goes on until it is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, _arguments: Mapping[str, Any], call: Call) -> int:
        self.begun.set()
        call.tell("begun")
        if call.cancelled.wait(_SOON):
            self.cancelled.set()
            call.warn("given up")
        return 3


def dialled(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_SOON)
    connection.connect(str(folder / _SOCKET))
    return connection


def last_line(connection: socket.socket) -> Any:
    """What the server says last, before it closes."""
    said = b""
    while chunk := connection.recv(65_536):
        said += chunk
    return orjson.loads(said.splitlines()[-1])


def test_lines_the_answer_and_the_exit_code_come_to_the_caller(serve: Serve, caller: Caller) -> None:
    def verify(arguments: Mapping[str, Any], call: Call) -> int:
        call.tell("기사 1,200건")
        call.warn("one\nof two lines")
        call.tell("")
        call.give({"arguments": arguments, "good": [1, 2.5, None]})
        return 3

    serve({"verify": verify})
    assert caller.ask("verify", deep=True, ids=["a", "ㄴ"]) == Reply(
        3, {"arguments": {"deep": True, "ids": ["a", "ㄴ"]}, "good": [1, 2.5, None]}
    )
    assert (caller.out, caller.err) == (["기사 1,200건", ""], ["one\nof two lines"])


def test_a_line_is_told_while_the_command_still_works(serve: Serve, tmp_path: Path) -> None:
    heard = threading.Event()

    def work(_arguments: Mapping[str, Any], call: Call) -> int:
        call.tell("half")
        return 0 if heard.wait(_SOON) else 1

    serve({"work": work})
    reply = ask(tmp_path, "work", {}, tell=lambda _line: heard.set(), warn=print, timeout=_SOON)
    assert reply == Reply(0, None)


def test_the_last_answer_given_counts(serve: Serve, caller: Caller) -> None:
    def count(_arguments: Mapping[str, Any], call: Call) -> int:
        call.give(1)
        call.give(2)
        return 0

    serve({"count": count})
    assert caller.ask("count") == Reply(0, 2)


def test_an_answer_of_megabytes_arrives_whole(serve: Serve, caller: Caller) -> None:
    text = "여울" * 1_000_000

    def give(_arguments: Mapping[str, Any], call: Call) -> int:
        call.give(text)
        return 0

    serve({"give": give})
    assert caller.ask("give") == Reply(0, text)


def test_lines_of_many_threads_stay_whole(serve: Serve, caller: Caller) -> None:
    lines = [str(n) * 400_000 for n in range(8)] * 2  # each larger than a socket's buffer

    def work(_arguments: Mapping[str, Any], call: Call) -> int:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(call.tell, lines))
        return 0

    serve({"work": work})
    assert caller.ask("work") == Reply(0, None)
    assert sorted(caller.out) == sorted(lines)


def test_a_line_with_half_a_character_is_told_escaped(serve: Serve, caller: Caller) -> None:
    def name(_arguments: Mapping[str, Any], call: Call) -> int:
        call.tell("file \udcff.md")
        raise InvalidInput("cannot read \udcff.md", "rename \udcff.md")

    serve({"name": name})
    error = caller.refused("name")
    assert caller.out == ["file \\udcff.md"]
    assert str(error) == "cannot read \\udcff.md. rename \\udcff.md"


def test_an_error_of_the_handler_is_the_callers_error(serve: Serve, caller: Caller) -> None:
    def find(arguments: Mapping[str, Any], _call: Call) -> int:
        raise ArticleNotFound(arguments["id"])

    serve({"find": find})
    error, original = caller.refused("find", id="없음"), ArticleNotFound("없음")
    assert (error.code, error.message, error.hint) == (original.code, original.message, original.hint)


def test_an_unexpected_error_is_logged_and_shows_nothing_of_the_inside(
    serve: Serve, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_arguments: Mapping[str, Any], _call: Call) -> int:
        raise LookupError("secret inside")

    def give_a_set(_arguments: Mapping[str, Any], call: Call) -> int:
        call.give({1, 2})
        return 0

    serve({"fail": fail, "give": give_a_set, "greet": greet})
    for command, cause in (("fail", LookupError), ("give", TypeError)):
        caplog.clear()
        error = caller.refused(command)
        assert (error.code, str(error)) == ("internal_error", "an unexpected error happened. see the server's log")
        logged = caplog.records[-1]
        assert command in logged.getMessage()
        assert logged.exc_info is not None
        assert isinstance(logged.exc_info[1], cause)
    assert caller.ask("greet") == Reply(0, None)


def test_an_unknown_command_is_refused_by_name_with_those_that_are_known(serve: Serve, caller: Caller) -> None:
    serve({"verify": greet, "rollback": greet})
    error = caller.refused("rebiuld")
    assert error.code == "invalid_input"
    assert "'rebiuld'" in error.message
    assert "rollback, verify" in error.hint


@pytest.mark.parametrize(
    "left", ["nothing", "no folder", "a file for a folder", "a file", "a socket without a process"]
)
def test_nobody_answers_where_nobody_listens(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "data"
    if left == "a file for a folder":
        folder.write_text("")
    elif left != "no folder":
        folder.mkdir()
    if left == "a file":
        (folder / _SOCKET).write_text("")
    elif left == "a socket without a process":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / _SOCKET))
    assert Caller(folder).ask("greet") is None


def test_another_process_does_the_command(caller: Caller, serving_process: Start) -> None:
    serving_process(caller.folder)
    assert caller.ask("add", a=20, b=22) == Reply(42, None)


def test_a_caller_whose_server_is_killed_in_the_middle_is_told_so(tmp_path: Path, serving_process: Start) -> None:
    server = serving_process(tmp_path)
    with pytest.raises(NotReady, match="ended while it worked") as caught:
        ask(tmp_path, "work", {}, tell=lambda _line: os.kill(server.pid, signal.SIGKILL), warn=print, timeout=_SOON)
    assert "give the command again" in caught.value.hint


def test_a_server_that_ends_before_it_read_the_request_has_ended_as_well(tmp_path: Path) -> None:
    """Then the kernel says "reset" to the caller, and not "closed"."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as threads:
        listener.bind(str(tmp_path / _SOCKET))
        listener.listen()
        asked = threads.submit(Caller(tmp_path).refused, "greet")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1, socket.MSG_PEEK)
        assert isinstance(asked.result(), NotReady)


def test_the_socket_of_a_killed_process_answers_nobody_and_is_replaced(
    serve: Serve, caller: Caller, serving_process: Start
) -> None:
    process = serving_process(caller.folder)
    process.kill()
    process.wait()
    assert (caller.folder / _SOCKET).is_socket()
    assert caller.ask("greet") is None
    serve({"greet": greet})
    assert caller.ask("greet") == Reply(0, None)


@pytest.mark.parametrize("obstacle", ["no folder", "a folder in its place"])
def test_a_folder_that_cannot_hold_a_socket_is_a_bad_setting(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "data"
    if obstacle == "a folder in its place":
        (folder / _SOCKET).mkdir(parents=True)
    server = ControlServer(folder, {})
    with pytest.raises(InvalidSetting, match="'data_dir' should be a folder that can hold a socket"):
        server.start()
    server.close()


def test_the_socket_is_its_owners_alone_whatever_the_umask(serve: Serve, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        serve({"greet": greet})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / _SOCKET).stat().st_mode) == 0o600


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def asked_as_nobody(folder: Path) -> str:
    command = [sys.executable, "-c", _ASKS_AS_NOBODY, str(folder), str(_NOBODY)]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user: run the tests as root")
def test_another_user_cannot_open_the_socket(serve: Serve, public_folder: Path) -> None:
    serve({"greet": greet}, public_folder)
    told = asked_as_nobody(public_folder)
    assert told.startswith("InvalidInput")
    assert f"opened by its owner alone, this process is of user {_NOBODY}" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user: run the tests as root")
def test_another_user_is_refused_even_where_somebody_opened_the_socket_to_all(
    serve: Serve, public_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve({"greet": greet}, public_folder)
    (public_folder / _SOCKET).chmod(0o666)
    told = asked_as_nobody(public_folder)
    assert "안녕" not in told
    assert f"commands are taken from user 0, not from user {_NOBODY}" in told
    assert f"user {_NOBODY} was refused" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="a longer path needs Linux's /proc")
@pytest.mark.parametrize("length", [107, 108, 700])
def test_a_path_of_any_length_works(serve: Serve, length: int) -> None:
    """The kernel takes 107 bytes of address."""
    with tempfile.TemporaryDirectory() as short:
        missing = length - len(f"{short}/{_SOCKET}")
        first = missing if missing < 200 else 100 + missing % 100
        folder = Path(short, "d" * (first - 1), *["d" * 99] * ((missing - first) // 100))
        path = folder / _SOCKET
        assert len(str(path)) == length
        folder.mkdir(parents=True)
        assert Caller(folder).ask("greet") is None
        server = serve({"greet": greet}, folder)
        assert path.is_socket()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Caller(folder).ask("greet") == Reply(0, None)
        server.close()
        assert list(folder.iterdir()) == []


def test_sixteen_commands_go_on_at_once_and_one_more_is_refused(serve: Serve, caller: Caller) -> None:
    entered = threading.Semaphore(0)
    released = threading.Event()

    def work(arguments: Mapping[str, Any], call: Call) -> int:
        entered.release()
        call.give(arguments["number"])
        return 0 if released.wait(_SOON) else 1

    serve({"work": work})
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(caller.ask, "work", number=n) for n in range(16)]
        assert all(entered.acquire(timeout=_SOON) for _ in asked)
        error = caller.refused("work", number=16)
        released.set()
        assert [one.result() for one in asked] == [Reply(0, n) for n in range(16)]
    assert (error.code, error.message) == ("unavailable", "16 commands are under way, no more are taken")


def test_a_command_that_ended_makes_room(serve: Serve, caller: Caller) -> None:
    serve({"greet": greet})
    assert [caller.ask("greet") for _ in range(50)] == [Reply(0, None)] * 50


def test_ctrl_c_of_the_caller_cancels_the_command(serve: Serve, tmp_path: Path) -> None:
    work = Waiting()
    serve({"work": work})

    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, "work", {}, tell=interrupted, warn=print)
    assert work.cancelled.wait(_SOON)


def test_a_caller_that_runs_out_of_time_says_so_and_cancels_the_command(serve: Serve, caller: Caller) -> None:
    work = Waiting()
    serve({"work": work})
    with pytest.raises(NotReady, match=r"no answer within 0\.2 s"):
        caller.ask("work", timeout=0.2)
    assert work.cancelled.wait(_SOON)


def test_the_time_is_for_the_whole_and_not_for_each_line(serve: Serve, caller: Caller) -> None:
    def chatter(_arguments: Mapping[str, Any], call: Call) -> int:
        while not call.cancelled.wait(0.01):
            call.tell("still here")
        return 0

    serve({"chatter": chatter})
    with pytest.raises(NotReady, match=r"no answer within 3 s"):
        caller.ask("chatter", timeout=3)
    assert caller.out


def test_an_error_of_the_callers_own_is_not_taken_for_the_servers(serve: Serve, tmp_path: Path) -> None:
    serve({"greet": greet})

    def late(_line: str) -> None:
        raise TimeoutError("the caller's own")

    with pytest.raises(TimeoutError, match="the caller's own"):
        ask(tmp_path, "greet", {}, tell=late, warn=print)


@pytest.mark.usefixtures("_slow_callers")
def test_a_caller_that_reads_late_still_gets_everything(serve: Serve, tmp_path: Path) -> None:
    """A pager may wait for its reader longer than a request may take."""
    told = threading.Event()

    def list_all(_arguments: Mapping[str, Any], call: Call) -> int:
        call.tell("x" * 3_000_000)
        told.set()
        return int(call.cancelled.is_set())

    serve({"list": list_all}, request_seconds=0.1)
    with dialled(tmp_path) as connection:
        connection.sendall(b'{"command":"list","arguments":{}}\n')
        assert not told.wait(0.3)
        assert last_line(connection) == {"exit": 0}


def test_a_caller_that_takes_no_line_for_long_counts_as_gone(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_WRITE_SECONDS", 0.1)
    cancelled = threading.Event()

    def list_all(_arguments: Mapping[str, Any], call: Call) -> int:
        call.tell("x" * 3_000_000)
        if call.cancelled.wait(_SOON):
            cancelled.set()
        return 0

    serve({"list": list_all})
    with dialled(tmp_path) as connection:
        connection.sendall(b'{"command":"list","arguments":{}}\n')
        assert cancelled.wait(_SOON)
        said = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert b"\n" not in said  # nothing comes behind half a line


def test_a_handler_that_writes_to_a_caller_who_left_goes_on_and_is_cancelled(serve: Serve, tmp_path: Path) -> None:
    ended = threading.Event()

    def flood(_arguments: Mapping[str, Any], call: Call) -> int:
        while not call.cancelled.is_set():
            call.tell("x" * 100_000)  # soon blocks: nobody reads
        call.tell("more")
        ended.set()
        return 0

    serve({"flood": flood})
    with dialled(tmp_path) as connection:
        connection.sendall(b'{"command":"flood","arguments":{}}\n')
        assert connection.recv(10)
        assert not ended.is_set()
    assert ended.wait(_SOON)


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b"[1]\n",
        b'{"command": "greet"}\n',
        b'{"command": 1, "arguments": {}}\n',
        b'{"command": "greet", "arguments": []}\n',
        b'{"command": "greet", "argum',
    ],
    ids=lambda given: given[:20].decode(errors="replace"),
)
def test_garbage_is_answered_with_an_error_and_the_server_goes_on(
    serve: Serve, caller: Caller, caplog: pytest.LogCaptureFixture, request_line: bytes
) -> None:
    serve({"greet": greet})
    with dialled(caller.folder) as connection:
        connection.sendall(request_line)
        connection.shutdown(socket.SHUT_WR)
        error = last_line(connection)["error"]
    assert error["code"] == "invalid_input"
    assert error["hint"]
    assert caller.ask("greet") == Reply(0, None)
    assert caplog.records == []


def test_a_request_without_an_end_is_refused_before_it_ends(serve: Serve, tmp_path: Path) -> None:
    serve({"greet": greet})
    with dialled(tmp_path) as connection:
        connection.sendall(b"x" * 1_000_001)
        assert last_line(connection)["error"]["code"] == "too_large"


def test_a_caller_that_leaves_without_a_word_disturbs_nobody(
    serve: Serve, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    serve({"greet": greet})
    for _ in range(40):
        with dialled(caller.folder) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert caller.ask("greet") == Reply(0, None)
    assert caplog.records == []


@pytest.mark.parametrize("said", [b"", b'{"command": "gre'])
def test_a_caller_that_does_not_say_what_it_wants_is_sent_away(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    begun, request_line = threading.Event(), control._request_line

    def read(connection: socket.socket, seconds: float) -> bytes:
        assert begun.wait(_SOON)
        return request_line(connection, seconds)

    monkeypatch.setattr(control, "_request_line", read)
    serve({"greet": greet}, request_seconds=0.1)
    with dialled(tmp_path) as connection:
        connection.sendall(said)
        begun.set()
        error = last_line(connection)["error"]
    assert error["message"] == "no whole request came within 0.1 s"


@pytest.mark.usefixtures("_slow_callers")
def test_a_command_may_take_longer_than_its_request(serve: Serve, caller: Caller) -> None:
    def work(_arguments: Mapping[str, Any], call: Call) -> int:
        return int(call.cancelled.wait(0.3))

    serve({"work": work}, request_seconds=0.1)
    assert caller.ask("work") == Reply(0, None)


@pytest.mark.parametrize("excess", [0, 1, 5_000_000])
def test_a_request_of_a_megabyte_is_taken_and_a_larger_one_refused(serve: Serve, caller: Caller, excess: int) -> None:
    def measure(arguments: Mapping[str, Any], _call: Call) -> int:
        return len(arguments["text"])

    serve({"measure": measure})
    around = len(b'{"command":"measure","arguments":{"text":""}}\n')
    text = "x" * (1_000_000 - around + excess)
    if excess:
        assert caller.refused("measure", text=text).code == "too_large"
    else:
        assert caller.ask("measure", text=text) == Reply(len(text), None)


@pytest.mark.parametrize("value", ["\udcff", {1, 2}, Path("x")], ids=["half a character", "set", "path"])
def test_arguments_that_json_cannot_say_are_refused_before_they_are_sent(caller: Caller, value: object) -> None:
    with pytest.raises(InvalidInput, match="are no JSON"):
        caller.ask("greet", value=value)


def test_closing_cancels_what_goes_on_and_its_last_words_arrive(serve: Serve, caller: Caller) -> None:
    work = Waiting()
    server = serve({"work": work}, grace_seconds=_SOON)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(caller.ask, "work")
        assert work.begun.wait(_SOON)
        server.close()
        assert asked.result() == Reply(3, None)
    assert caller.err == ["given up"]
    assert not (caller.folder / _SOCKET).exists()
    assert caller.ask("work") is None


def test_closing_waits_for_no_handler_longer_than_its_grace(
    serve: Serve, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    begun, released = threading.Event(), threading.Event()

    def deaf(_arguments: Mapping[str, Any], _call: Call) -> int:
        begun.set()
        released.wait(_SOON)
        return 0

    server = serve({"deaf": deaf}, grace_seconds=0.1)
    with ThreadPoolExecutor(1) as threads, caplog.at_level(logging.WARNING):
        asked = threads.submit(caller.refused, "deaf")
        assert begun.wait(_SOON)
        server.close()
        assert isinstance(asked.result(), NotReady)
        released.set()
    assert "1 commands did not end within 0.1 s" in caplog.text


def test_closing_sends_away_who_has_not_said_anything_yet(serve: Serve, tmp_path: Path) -> None:
    server = serve({"greet": greet}, request_seconds=_SOON, grace_seconds=2 * _SOON)
    with dialled(tmp_path) as connection, dialled(tmp_path) as later:
        later.sendall(b'{"command":"greet","arguments":{}}\n')
        assert last_line(later) == {"exit": 0}  # so the one before has been accepted
        server.close()
        assert last_line(connection)["error"]["code"] == "not_ready"  # not that its request took too long


def test_a_server_closes_twice_and_without_a_start(tmp_path: Path) -> None:
    ControlServer(tmp_path, {}).close()
    server = ControlServer(tmp_path, {})
    server.start()
    server.close()
    server.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in Linux's /proc")
def test_a_closed_server_leaves_no_thread_and_no_open_file(caller: Caller) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = open_files()
    for _ in range(3):
        server = ControlServer(caller.folder, {"greet": greet})
        server.start()
        assert caller.ask("greet") == Reply(0, None)
        server.close()
    assert open_files() == before
    left = [thread for thread in threading.enumerate() if thread.name.startswith("control")]
    for thread in left:  # one that has done everything may still be about to end
        thread.join(_SOON)
    assert not any(thread.is_alive() for thread in left)
