"""Talks to the agent in the host VM (host/agent.py): commands, files, QMP to the guests.

A connection takes one request: a line of JSON, in it the `size` of the raw bytes that follow.
The answer has the same form.
"""
import dataclasses
import json
import socket

from .error import VmError


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command in the host VM ended."""
    rc: int                     # negative: the signal that ended it
    out: str
    err: str
    timed_out: bool
    seconds: float


class Agent:
    """The agent behind a port of 127.0.0.1."""

    def __init__(self, port):
        self._port = port

    def request(self, op, body=b'', timeout=30, **arguments):
        """(the answer's values, its raw bytes); timeout: for a silence."""
        line = json.dumps({'op': op, 'size': len(body), **arguments}).encode() + b'\n'
        try:
            with socket.create_connection(('127.0.0.1', self._port), timeout) as connection:
                connection.sendall(line + body)
                with connection.makefile('rb') as file:
                    answer = json.loads(file.readline())
                    data = file.read(answer.pop('size'))
        except (OSError, ValueError) as error:
            raise VmError(f'the host VM does not answer ({op}): {error}') from None
        if 'error' in answer:
            raise VmError(f'in the host VM ({op}): {answer["error"]}')
        return answer, data

    def clocks(self, timeout=30):
        """The VM's clocks: {'monotonic': seconds, 'realtime': seconds}."""
        return self.request('clocks', timeout=timeout)[0]

    def set_time(self, realtime):
        """Sets the VM's wall clock, which stood still in a snapshot."""
        self.request('set_time', realtime=realtime)

    def exec(self, command, stdin=b'', timeout=120, env=None):
        """Runs a command: a string goes to bash, a list runs as it is."""
        body = stdin.encode() if isinstance(stdin, str) else stdin
        return Result(**self.request('exec', body, timeout + 30, command=command, limit=timeout,
                                     env=env or {})[0])

    def put(self, data, path, mode):
        """Writes a file; it appears under its name at once and whole."""
        self.request('put', data, 120, path=path, mode=mode)

    def get(self, path):
        """A file's bytes."""
        return self.request('get', timeout=120, path=path)[1]

    def qmp(self, path, command, arguments):
        """One QMP command over a socket in the VM; its return value."""
        reply = self.request('qmp', timeout=90, path=path, command=command,
                             arguments=arguments)[0]
        if 'fault' in reply:
            raise VmError(f"QMP {command}: {reply['fault']}")
        return reply['return']

    def guest_shell(self, path, line, timeout):
        """One line to a Linux guest's shell behind a socket in the VM: (exit status, text)."""
        answer, _ = self.request('guest_shell', timeout=timeout + 30, path=path, line=line,
                                 limit=timeout)
        return answer['rc'], answer['text']
