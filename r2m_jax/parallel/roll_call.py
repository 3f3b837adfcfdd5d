"""Who is there, before JAX connects: its own time-out ends a process without a word on who was missing.

Process 0 listens on the coordinator's port until every other has said its number, tells all of them what it found and
frees the port, on which JAX's coordination service starts then.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack

from r2m_jax.errors import InputError

_RETRY_S = 0.2
_GRACE_S = 10.0
"""How much longer than process 0 the others wait, so that all say the same."""


def roll_call(coordinator: str, processes: int, process: int, *, command: str, timeout: float) -> None:
    """Return once all processes have called; all of them return, or all raise.

    Args:
        coordinator: HOST:PORT of process 0.
        processes, process: how many there are, and which this is.
        command: what this process is to do; the same in all.
        timeout: seconds to wait for the last.

    Raises:
        InputError: processes are missing (the message names them), two have one number, or they have different
            commands; or the address is none, or in use.
    """
    host, separator, port = coordinator.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator {coordinator} is no HOST:PORT.")
    said = {"process": process, "processes": processes, "command": command}
    if process == 0:
        _listen(int(port), said, time.monotonic() + timeout, timeout)
    else:
        _call(host.strip("[]"), int(port), said, time.monotonic() + timeout, timeout)


def _listen(port: int, own: dict[str, object], deadline: float, timeout: float) -> None:
    count = own["processes"]
    assert isinstance(count, int)
    peers: dict[int, socket.socket] = {}
    trouble = ""
    try:
        server = _server(port)
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}); choose another."
        ) from None
    with ExitStack() as open_sockets:
        open_sockets.enter_context(server)
        callers: list[socket.socket] = []
        while not trouble and len(peers) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                missing = [number for number in range(1, count) if number not in peers]
                trouble = f"{_numbers(missing)} of {count} did not call process 0 within {timeout:g} s; start them all."
                break
            open_sockets.enter_context(peer)
            heard = _heard(peer)
            number = heard.get("process")
            if not isinstance(number, int) or not 0 < number < count:
                continue  # something that scans ports, or is of another computation
            callers.append(peer)
            if number in peers and not _gone(peers[number]):
                trouble = f"there are two processes {number}; every one needs a number of its own."
            elif heard["processes"] != count:
                trouble = f"process {number} was told of {heard['processes']} processes, process 0 of {count}."
            elif heard["command"] != own["command"]:
                trouble = (
                    f"process {number} runs {heard['command']!r}, process 0 {own['command']!r}; all must run the same "
                    "(--multi-process off keeps them apart)."
                )
            peers[number] = peer
        for peer in callers:
            _send(peer, {"trouble": trouble})
    if trouble:
        raise InputError(trouble)


def _call(host: str, port: int, said: dict[str, object], deadline: float, timeout: float) -> None:
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())) as peer:
                if peer.getsockname() == peer.getpeername():
                    raise ConnectionError  # a port nobody listens on may be given to the caller itself
                _send(peer, said)
                answer = _heard(peer, max(0.01, deadline - time.monotonic()) + _GRACE_S)
        except OSError:
            answer = {}
        if "trouble" in answer:
            if answer["trouble"]:
                raise InputError(str(answer["trouble"]))
            return
        if time.monotonic() > deadline:
            raise InputError(f"process 0 did not answer at {host}:{port} within {timeout:g} s; start it.")
        time.sleep(_RETRY_S)


def _server(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _send(peer: socket.socket, message: dict[str, object]) -> None:
    try:
        peer.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return  # it is gone; JAX's own time-out tells


def _heard(peer: socket.socket, timeout: float = 5.0) -> dict[str, object]:
    """One line of JSON; empty if none comes."""
    peer.settimeout(timeout)
    try:
        with peer.makefile("rb") as file:
            message = json.loads(file.readline(2**16))
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _gone(peer: socket.socket) -> bool:
    """Whether the other end has closed; it has nothing to say before it is answered."""
    peer.setblocking(False)
    try:
        return not peer.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.settimeout(5)


def _numbers(missing: list[int]) -> str:
    listed = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"process{'es' * (len(missing) > 1)} {listed}"
