"""A QMP client: one connection to one QEMU, commands one after the other."""
import json
import socket
import time

from .error import VmError


class QMP:
    """A connection over a UNIX socket.  QEMU serves one client at a time."""

    def __init__(self, path, timeout=60):
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(path)
        self._file = self._socket.makefile('rb')
        self._events = []
        self._read()                # the greeting
        self.execute('qmp_capabilities')

    def execute(self, command, **arguments):
        """The command's return value; names with a dash go in as **{'node-name': ...}."""
        message = {'execute': command, 'arguments': arguments}
        try:
            self._socket.sendall(json.dumps(message).encode() + b'\n')
        except OSError as error:
            raise VmError(f'QMP {command}: {error}') from None
        while True:
            reply = self._read()
            if 'error' in reply:
                raise VmError(f"QMP {command}: {reply['error']['desc']}")
            if 'return' in reply:
                return reply['return']
            self._events.append(reply)

    def wait_event(self, name, timeout=30, **data):
        """Waits for an event whose data has these values; one that has come already counts."""
        end = time.monotonic() + timeout
        try:
            while True:
                for event in self._events:
                    if event['event'] == name and data.items() <= event.get('data', {}).items():
                        self._events.remove(event)
                        return event
                self._socket.settimeout(max(0.01, end - time.monotonic()))
                self._events.append(self._read())
        except VmError as error:
            raise VmError(f'QMP event {name}: {error}') from None
        finally:
            self._socket.settimeout(self._timeout)

    def close(self):
        self._file.close()
        self._socket.close()

    def _read(self):
        try:
            line = self._file.readline()
        except OSError as error:
            raise VmError(f'QEMU does not answer: {error}') from None
        if not line:
            raise VmError('QEMU closed the connection')
        return json.loads(line)
