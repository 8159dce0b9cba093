"""A device: its identity, how it answers, and how it misbehaves."""
import contextlib
import struct
import threading
import time

from . import redir
from .descriptors import IN
from .redir import IO_ERROR, STALL, SUCCESS


class Device:
    """A device that answers the requests of chapter 9 by its identity. A kind of device adds
    `control` for class requests, `bulk_out` and `bulk_in` for data.

    Misbehaviour, as attributes:
        descriptors_after   seconds until it answers a descriptor request for the first time
        fails               so many device descriptor requests are answered by a stall
        stalls              every control request is answered by a stall
        silent              no control request is answered at all
        naks                no data is ever taken or sent (bulk)
    """

    descriptors_after = 0
    fails = 0
    stalls = False
    silent = False
    naks = False

    def __init__(self, identity):
        self.identity = identity
        self.configuration = 0
        self.alternates = {}
        self.resets = 0
        self._server = None
        self._waiting = {}              # (endpoint, stream): [(packet ID, length)] of IN requests
        self._receiving = set()         # interrupt endpoints that were started
        self._lock = threading.RLock()

    # -- in and out of a port

    def serve(self, path):
        """Is there for a QEMU that connects to the path."""
        self._server = redir.Server(path, self)

    def close(self):
        """Ends it."""
        if self._server:
            self._server.close()
            self._server = None

    def drop_off(self):
        """Leaves the bus, as with a loose contact."""
        self._server.send(redir.DISCONNECT, b'')

    def come_back(self):
        """Is on the bus again."""
        self.configuration, self.alternates = 0, {}
        self._waiting, self._receiving = {}, set()
        self.connected()

    def become(self, identity, after=0.5):
        """Enumerates again as another device, as with a mode switch or new firmware."""
        self.drop_off()
        time.sleep(after)
        self.identity = identity
        self.come_back()

    # -- for the server

    def connected(self):
        """Appears on the bus of the QEMU that is there now."""
        self._describe()
        it = self.identity
        self._server.send(redir.CONNECT, struct.pack('<BBBBHHH', it.speed, it.cls, it.subclass,
                                                     it.protocol, it.vendor, it.product, 0x0100))

    def left(self):
        """The QEMU has left: the device was unplugged."""
        with self._lock:
            self.configuration, self.alternates = 0, {}
            self._waiting, self._receiving = {}, set()

    def packet(self, kind, body, number):
        """Answers a packet."""
        send = self._server.send
        if kind == redir.CONTROL:
            threading.Thread(target=self._control, args=(body, number), daemon=True).start()
        elif kind == redir.BULK:
            self._bulk(body, number)
        elif kind == redir.SET_CONFIGURATION:
            self.configuration, self.alternates = body[0], {}
            self._describe()
            send(redir.CONFIGURATION_STATUS, bytes([SUCCESS, self.configuration]), number)
        elif kind == redir.GET_CONFIGURATION:
            send(redir.CONFIGURATION_STATUS, bytes([SUCCESS, self.configuration]), number)
        elif kind == redir.SET_ALTERNATE:
            self.alternates[body[0]] = body[1]
            self._describe()
            send(redir.ALTERNATE_STATUS, bytes([SUCCESS, body[0], body[1]]), number)
        elif kind == redir.GET_ALTERNATE:
            alternate = self.alternates.get(body[0], 0)
            send(redir.ALTERNATE_STATUS, bytes([SUCCESS, body[0], alternate]), number)
        elif kind in (redir.START_INTERRUPT, redir.STOP_INTERRUPT):
            change = self._receiving.add if kind == redir.START_INTERRUPT else self._receiving.discard
            change(body[0])
            send(redir.INTERRUPT_STATUS, bytes([SUCCESS, body[0]]), number)
        elif kind in (redir.ALLOCATE_STREAMS, redir.FREE_STREAMS):
            endpoints, = struct.unpack('<I', body[:4])
            count = struct.unpack('<I', body[4:8])[0] if kind == redir.ALLOCATE_STREAMS else 0
            send(redir.STREAMS_STATUS, struct.pack('<IIB', endpoints, count, SUCCESS), number)
        elif kind == redir.RESET:
            self.resets += 1
            self.left()
        elif kind == redir.CANCEL:
            self._cancel(number)

    # -- for kinds of devices

    def control(self, request, kind, value, index, data):
        """Answers a class or vendor request: bytes, or None for a stall."""
        return None if kind & IN else b''

    def bulk_out(self, endpoint, stream, data):
        """Takes data; whether it could."""
        return True

    def bulk_in(self, endpoint, stream, length):
        """The data for an IN request; None if there is none yet: `feed` sends it later."""

    def interrupt(self, endpoint, data):
        """Sends a report, if the host listens; whether it did."""
        if endpoint not in self._receiving:
            return False
        header = struct.pack('<BBH', endpoint, SUCCESS, len(data))
        self._server.send(redir.INTERRUPT, header + data)
        return True

    def feed(self, endpoint, stream, data):
        """Answers the oldest IN request of the endpoint and stream; whether there was one."""
        with self._lock:
            waiting = self._waiting.get((endpoint, stream))
            if not waiting:
                return False
            number, length = waiting.pop(0)
        self._answer_bulk(endpoint, stream, data[:length], number)
        return True

    # -- how

    def _describe(self):
        """Tells QEMU the interfaces and endpoints of the configuration that is active."""
        active = [one for one in self.identity.configurations if one.number == self.configuration]
        settings = active[0].interfaces if active else ()
        settings = [one for one in settings
                    if one.alternate == self.alternates.get(one.number, 0)][:32]
        tables = [bytearray(32) for _ in range(4)]
        for place, one in enumerate(settings):
            for table, value in zip(tables, (one.number, one.cls, one.subclass, one.protocol)):
                table[place] = value
        self._server.send(redir.INTERFACES,
                          struct.pack('<I', len(settings)) + b''.join(map(bytes, tables)))
        kinds, intervals, owners = bytearray(b'\xff' * 32), bytearray(32), bytearray(32)
        packets, streams = [0] * 32, [0] * 32
        kinds[0] = kinds[16] = 0
        packets[0] = packets[16] = 64
        for one in settings:
            for endpoint in one.endpoints:
                place = endpoint.index
                kinds[place], intervals[place] = endpoint.kind, endpoint.interval
                owners[place], packets[place] = one.number, endpoint.packet
                streams[place] = 1 << endpoint.streams if endpoint.streams else 0
        self._server.send(redir.ENDPOINTS, bytes(kinds) + bytes(intervals) + bytes(owners)
                          + struct.pack('<32H', *packets) + struct.pack('<32I', *streams))

    def _control(self, body, number):
        endpoint, request, kind, _, value, index, length = struct.unpack('<BBBBHHH', body[:10])
        if self.silent:
            return
        answer = self._standard(request, kind, value, index, body[10:])
        status = STALL if answer is None else SUCCESS
        data = (answer or b'')[:length] if kind & IN else b''
        done = len(data) if kind & IN else length
        header = struct.pack('<BBBBHHH', endpoint, request, kind, status, value, index, done)
        self._server.send(redir.CONTROL, header + data, number)

    def _standard(self, request, kind, value, index, data):
        if self.stalls:
            return None
        if request == 6 and kind == 0x80:
            if self.descriptors_after:
                delay, self.descriptors_after = self.descriptors_after, 0
                time.sleep(delay)
            if value >> 8 == 1 and self.fails > 0:
                self.fails -= 1
                return None
            return self.identity.descriptor(value >> 8, value & 0xff)
        if kind & 0x60 == 0 and request == 0 and kind & IN:      # GET_STATUS
            return bytes(2)
        if kind & 0x60 == 0 and not kind & IN:                   # SET_FEATURE and the like
            return b''
        return self.control(request, kind, value, index, data)

    def _bulk(self, body, number):
        endpoint, _, low, stream, high = struct.unpack('<BBHIH', body[:10])
        length = low | high << 16
        if self.naks:
            with self._lock:
                self._waiting.setdefault((endpoint, stream), []).append((number, length))
            return
        if not endpoint & IN:
            taken = self.bulk_out(endpoint, stream, body[10:])
            header = struct.pack('<BBHIH', endpoint, SUCCESS if taken else IO_ERROR, low, stream, high)
            self._server.send(redir.BULK, header, number)
            return
        with self._lock:
            self._waiting.setdefault((endpoint, stream), []).append((number, length))
        data = self.bulk_in(endpoint, stream, length)
        if data is not None:
            self.feed(endpoint, stream, data)

    def _answer_bulk(self, endpoint, stream, data, number, status=SUCCESS):
        header = struct.pack('<BBHIH', endpoint, status, len(data) & 0xffff, stream, len(data) >> 16)
        self._server.send(redir.BULK, header + data, number)

    def _cancel(self, number):
        with self._lock:
            for (endpoint, stream), waiting in self._waiting.items():
                for entry in waiting:
                    if entry[0] == number:
                        with contextlib.suppress(ValueError):
                            waiting.remove(entry)
                        self._answer_bulk(endpoint, stream, b'', number, redir.CANCELLED)
                        return
