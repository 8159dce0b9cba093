"""The usbredir protocol (usbredir: docs/usb-redirection-protocol.md), for the side that has the device.

Each packet is a header (type, length, ID) and a body. The peer, a QEMU, sends requests with an ID, and
gets the answer with that ID. Data for IN endpoints is asked for in the same way, but interrupt
endpoints send by themselves once they were started.
"""
import os
import socket
import struct
import threading

HELLO, CONNECT, DISCONNECT, RESET, INTERFACES, ENDPOINTS = range(6)
SET_CONFIGURATION, GET_CONFIGURATION, CONFIGURATION_STATUS = 6, 7, 8
SET_ALTERNATE, GET_ALTERNATE, ALTERNATE_STATUS = 9, 10, 11
START_INTERRUPT, STOP_INTERRUPT, INTERRUPT_STATUS = 15, 16, 17
ALLOCATE_STREAMS, FREE_STREAMS, STREAMS_STATUS = 18, 19, 20
CANCEL, FILTER_REJECT, FILTER, DISCONNECT_ACK = 21, 22, 23, 24
CONTROL, BULK, ISOCHRONOUS, INTERRUPT = 100, 101, 102, 103

SUCCESS, CANCELLED, INVALID, IO_ERROR, STALL = range(5)

# What this side can: bulk streams, the device's version, disconnect acknowledged, packet sizes, IDs of
# 64 bits, bulk lengths of 32 bits. Without these QEMU rejects a device on an xHCI.
_CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6))


class Server:
    """Listens at a path for the QEMU that has the port. `device` answers its packets."""

    def __init__(self, path, device):
        self._device = device
        self._listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(1)
        self._peer = None
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self):
        """Ends it, and the connection with it."""
        self._listener.close()
        if self._peer:
            self._peer.close()

    def send(self, kind, body, number=0):
        """Sends a packet; one to a QEMU that has left is lost."""
        wide = kind != HELLO
        header = struct.pack('<IIQ' if wide else '<III', kind, len(body), number)
        with self._lock:
            try:
                self._peer.sendall(header + body)
            except (AttributeError, OSError):
                pass

    def _run(self):
        while True:
            try:
                self._peer, _ = self._listener.accept()
                self._serve()
            except (EOFError, ConnectionError):
                self._device.left()
            except OSError:
                return                  # closed

    def _serve(self):
        self.send(HELLO, b'usbdev'.ljust(64, b'\0') + struct.pack('<I', _CAPABILITIES))
        _, length, _ = struct.unpack('<III', self._read(12))
        self._read(length)
        self._device.connected()
        while True:
            kind, length, number = struct.unpack('<IIQ', self._read(16))
            self._device.packet(kind, self._read(length), number)

    def _read(self, length):
        data = b''
        while len(data) < length:
            more = self._peer.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data
