"""The control socket: how another process of the same user gives a command to the one that holds the data folder.

Milvus Lite belongs to one process. `ControlServer` listens in the folder, `ask` sends it a command; JSON lines both ways:

    →  {"command": name, "arguments": {...}}                 one line, at most 1 MB
    ←  {"out": line}  {"err": line}  {"answer": value}       any number, as the command goes on
    ←  {"exit": n}  or  {"error": {"code": …, "message": …, "hint": …}}      the last one

A caller that closes its side has gone: its command is cancelled. Knows no command, and nothing of the folder's lock:
whoever starts a server holds it until the server is closed, so that there is one a folder.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import InvalidInput, InvalidSetting, NotReady, TooLarge, Unavailable, YeoulError, shown

log = logging.getLogger(__name__)

_SOCKET = "control.sock"
_MODE = 0o600  # only its owner can connect
_MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103  # of a socket's address, in the kernel's sockaddr_un
_MAX_REQUEST_BYTES = 1_000_000  # a command and its arguments; articles come by HTTP or from files
_MAX_CALLS = 16  # at once, each with two threads; more are refused, not queued
_WRITE_SECONDS = 60.0  # a caller that takes no line for so long (stopped, or its pager is) has gone
_ACCEPT_RETRY_SECONDS = 1.0  # after an accept that failed: no file descriptor is free
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: Linux's struct ucred

_Send = Callable[[Mapping[str, Any]], None]


class Call:
    """A command under way, as its handler sees it. Every method may be called from any thread.

    `cancelled` is set when the caller has gone or the server closes. Lines for a caller that has gone are dropped.
    """

    def __init__(self, send: _Send) -> None:
        self._send = send
        self.cancelled = threading.Event()

    def tell(self, line: str) -> None:
        """`line` for the caller's stdout."""
        self._send({"out": _printable(line)})

    def warn(self, line: str) -> None:
        """`line` for the caller's stderr."""
        self._send({"err": _printable(line)})

    def give(self, answer: Any) -> None:
        """The result, a JSON value; the last one given counts. Raises TypeError for what JSON cannot say."""
        self._send({"answer": answer})


Handler = Callable[[Mapping[str, Any], Call], int]  # (arguments, call) → exit code


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended: its exit code, and the answer (None where it gave none)."""

    code: int
    answer: Any


class ControlServer:
    """Listens in `folder`, from `start` to `close`, and hands each call to the handler of its command.

    `request_seconds`: how long a caller may be silent before its request is whole; `grace_seconds`: how long `close`
    waits for handlers under way. A handler's YeoulError becomes the caller's; another exception is logged and not shown.
    """

    def __init__(
        self, folder: Path, handlers: Mapping[str, Handler], *, request_seconds: float = 10, grace_seconds: float = 5
    ) -> None:
        self._folder = folder
        self._handlers = handlers
        self._request_seconds = request_seconds
        self._grace_seconds = grace_seconds
        self._closing = threading.Event()
        self._ending = ExitStack()
        self._lock = threading.Lock()
        self._calls: dict[socket.socket, threading.Thread] = {}

    def start(self) -> None:
        """Raises InvalidSetting where the folder cannot hold a socket. A file that a dead process left is replaced."""
        listener = _listening(self._folder)
        wake, woken = socket.socketpair()
        accepting = threading.Thread(target=self._accept, args=(listener, woken), name="control", daemon=True)
        accepting.start()
        self._ending.callback(self._end_calls)
        self._ending.callback(accepting.join)
        self._ending.callback(wake.close)
        self._ending.callback((self._folder / _SOCKET).unlink, missing_ok=True)
        self._ending.callback(self._closing.set)

    def close(self) -> None:
        """Takes no more calls, cancels those under way and waits for them. May be called twice, not by a handler."""
        self._ending.close()

    def _accept(self, listener: socket.socket, woken: socket.socket) -> None:
        with listener, woken, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                try:
                    connection, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue  # woken, or the caller went before it was its turn
                except OSError as error:
                    log.warning("the control socket cannot take a call: %s", error)
                    self._closing.wait(_ACCEPT_RETRY_SECONDS)
                else:
                    self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        send = partial(_send, connection, threading.Lock())
        with self._lock:
            if len(self._calls) < _MAX_CALLS:
                thread = threading.Thread(target=self._serve, args=(connection, send), name="control-call", daemon=True)
                thread.start()
                self._calls[connection] = thread
                return
        with connection:
            busy = Unavailable(f"{_MAX_CALLS} commands are under way, no more are taken", "try again in a while")
            send(_refusal(busy))

    def _serve(self, connection: socket.socket, send: _Send) -> None:
        try:
            if last := self._answer(connection, Call(send)):
                send(last)
        finally:
            with self._lock:
                connection.close()
                del self._calls[connection]

    def _answer(self, connection: socket.socket, call: Call) -> Mapping[str, Any] | None:
        """The last line for the caller; None where it went without a word."""
        command = "that was not read"
        try:
            _check_peer(connection)
            line = _request_line(connection, self._request_seconds)
            if self._closing.is_set():
                return _refusal(NotReady("the process that holds the folder is stopping", "try again when it has"))
            if not line:
                return None
            command, arguments = _request(line)
            handler = self._handler(command)
            with _watched(connection, call.cancelled):
                return {"exit": handler(arguments, call)}
        except YeoulError as error:
            return _refusal(error)
        except Exception:
            log.exception("the command %s failed unexpectedly", command)
            return _refusal(YeoulError("an unexpected error happened", "see the server's log"))

    def _handler(self, command: str) -> Handler:
        try:
            return self._handlers[command]
        except KeyError as error:
            raise InvalidInput(
                f"the process that holds the folder knows no command {shown(command)}",
                f"it knows {', '.join(sorted(self._handlers))}; is it of another version?",
            ) from error

    def _end_calls(self) -> None:
        deadline = time.monotonic() + self._grace_seconds
        # As if the callers had gone, except that their handlers can still tell them how it ended.
        for thread in self._shut_calls(socket.SHUT_RD):
            thread.join(_left(deadline))
        if left := self._shut_calls(socket.SHUT_RDWR):
            log.warning("%d commands did not end within %g s of being cancelled", len(left), self._grace_seconds)

    def _shut_calls(self, how: int) -> list[threading.Thread]:
        with self._lock:
            for connection in self._calls:
                with suppress(OSError):  # its caller has already gone
                    connection.shutdown(how)
            return list(self._calls.values())


def ask(
    folder: Path,
    command: str,
    arguments: Mapping[str, Any],
    *,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    timeout: float | None = None,
) -> Reply | None:
    """Has the process that holds `folder` do `command`; None where nobody listens there.

    `tell` and `warn` get the lines for stdout and stderr; `timeout` is for the whole, in seconds. Raises the server's
    error as a YeoulError with its code; NotReady where the time runs out or the server ends in the middle;
    InvalidInput where the folder is another user's, or JSON cannot say `arguments`.
    """
    try:
        request = orjson.dumps({"command": command, "arguments": dict(arguments)}) + b"\n"
    except TypeError as error:
        raise InvalidInput(f"the arguments {shown(arguments)} are no JSON: {error}", "is a text no UTF-8?") from error
    connection = _connected(folder)
    if connection is None:
        return None
    answer = None
    with connection, closing(_messages(connection, request, timeout)) as messages:
        for message in messages:
            match message:
                case {"out": str(line)}:
                    tell(line)
                case {"err": str(line)}:
                    warn(line)
                case {"answer": answer}:
                    pass
                case {"exit": int(code)}:
                    return Reply(code, answer)
                case {"error": {"code": str(name), "message": str(text), "hint": str(hint)}}:
                    refused = YeoulError(text, hint)
                    refused.code = name
                    raise refused
    why = "the process that holds the folder ended while it worked"
    raise NotReady(why, "its log says why; give the command again: it may have been done in part")


def _messages(connection: socket.socket, request: bytes, timeout: float | None) -> Generator[Any]:
    """What the server says to `request`, to the end of the connection, which may come before the last line."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with connection.makefile("rb") as lines:
        try:
            connection.settimeout(timeout)
            with suppress(ConnectionError):  # a server that refuses does not read to the end: the answer says why
                connection.sendall(request)
            while True:
                connection.settimeout(None if deadline is None else _left(deadline))
                line = lines.readline()
                if not line.endswith(b"\n"):
                    return
                yield orjson.loads(line)
        except TimeoutError as error:
            late = f"the process that holds the folder gave no answer within {timeout:g} s"
            raise NotReady(late, "give it more time, or see its log") from error
        except ConnectionError:
            return  # the same end, by a server that left something unread


def _connected(folder: Path) -> socket.socket | None:
    with ExitStack() as undone:
        connection = undone.enter_context(socket.socket(socket.AF_UNIX))
        try:
            with _address(folder) as address:
                connection.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        except PermissionError as error:
            why = f"{folder / _SOCKET} can be opened by its owner alone, this process is of user {os.geteuid()}"
            raise InvalidInput(why, "run the command as the user who runs the server, or use its HTTP API") from error
        undone.pop_all()
        return connection


def _listening(folder: Path) -> socket.socket:
    with ExitStack() as undone:
        listener = undone.enter_context(socket.socket(socket.AF_UNIX))
        try:
            (folder / _SOCKET).unlink(missing_ok=True)
            with _address(folder) as address:
                if sys.platform == "linux":
                    os.fchmod(listener.fileno(), _MODE)  # `bind` makes the file with it: it was never open to others
                listener.bind(address)
            if sys.platform != "linux":
                (folder / _SOCKET).chmod(_MODE)  # until `listen` nobody can connect
            listener.listen()
        except OSError as error:
            raise InvalidSetting("data_dir", str(folder), f"a folder that can hold a socket ({error})") from error
        listener.setblocking(False)
        undone.pop_all()
        return listener


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """What to bind or connect to: a folder whose path is too long for the kernel is reached through its descriptor."""
    path = folder / _SOCKET
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield str(path)
        return
    if sys.platform != "linux":
        rule = f"a path of at most {_MAX_PATH_BYTES - len(_SOCKET) - 1} bytes on this system, for the socket in it"
        raise InvalidSetting("data_dir", str(folder), rule)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)


def _check_peer(connection: socket.socket) -> None:
    """The second lock behind the file's mode, which somebody may have changed. Elsewhere than on Linux the mode is all."""
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in {os.geteuid(), 0}:  # root can do as it likes anyway
            log.warning("a process of user %d was refused at the control socket", uid)
            raise InvalidInput(f"commands are taken from user {os.geteuid()}, not from user {uid}", "use the HTTP API")


def _request_line(connection: socket.socket, seconds: float) -> bytes:
    """The first line; empty where the caller closes without a word. Raises InvalidInput, TooLarge."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as lines:
            line = lines.readline(_MAX_REQUEST_BYTES + 1)
    except TimeoutError as error:
        raise InvalidInput(f"no whole request came within {seconds:g} s", "send one line of JSON") from error
    except ConnectionError:
        return b""
    if len(line) > _MAX_REQUEST_BYTES:
        raise TooLarge("what was read of the request", len(line), _MAX_REQUEST_BYTES, "bytes")
    if line and not line.endswith(b"\n"):
        raise InvalidInput(f"the request {shown(line)} ends within its line", "end it with a line feed")
    return line


def _request(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the request {shown(line)} is no JSON: {error}", "send one line of JSON") from error
    match request:
        case {"command": str(command), "arguments": dict(arguments)}:
            return command, arguments
    rule = "an object with 'command' and 'arguments'"
    raise InvalidInput(f"the request should be {rule}, is {shown(line)}", 'send {"command": "name", "arguments": {}}')


@contextmanager
def _watched(connection: socket.socket, gone: threading.Event) -> Iterator[None]:
    """Sets `gone` when the caller closes its side within the block, or `connection` is shut down here."""

    def watch() -> None:
        while True:
            try:
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue  # it is for writing: a caller need not say anything more
            except OSError:
                break
        gone.set()

    connection.settimeout(_WRITE_SECONDS)
    watcher = threading.Thread(target=watch, name="control-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with suppress(OSError):  # the caller has gone by itself
            connection.shutdown(socket.SHUT_RD)
        watcher.join()


def _send(connection: socket.socket, lock: threading.Lock, message: Mapping[str, Any]) -> None:
    line = orjson.dumps(message) + b"\n"
    try:
        with lock:
            connection.sendall(line)
    except OSError:
        # The caller has gone, or has part of a line and takes no more: the watcher sees the end and cancels.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _refusal(error: YeoulError) -> Mapping[str, Any]:
    return {"error": {"code": error.code, "message": _printable(error.message), "hint": _printable(error.hint)}}


def _printable(text: str) -> str:
    """JSON holds no half characters, but a file's name may have some."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)  # 0 would mean "do not wait" to a socket, less is an error
