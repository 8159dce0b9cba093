"""Kinds of devices."""
import struct

from .descriptors import (BULK, FULL, HIGH, IN, INTERRUPT, LOW, SUPER, Configuration, Endpoint,
                          Identity, Interface)
from .device import Device
from .scsi import CHECK_CONDITION, Disk

VENDOR = 0x1209                 # pid.codes, whose 0001 to 0010 are for tests


class Keyboard(Device):
    """A boot keyboard (HID 1.11, appendix B)."""

    REPORT = bytes.fromhex('05010906a101050719e029e71500250175019508810295017508810195057501'
                           '050819012905910295017503910195067508150025650507190029658100c0')

    def __init__(self, speed=FULL, product=1, **identity):
        hid = struct.pack('<BBHBBBH', 9, 0x21, 0x0111, 0, 1, 0x22, len(self.REPORT))
        interval = 10 if speed in (LOW, FULL) else 4
        keys = Interface(0, 3, 1, 1, (Endpoint(0x81, INTERRUPT, 8, interval),), hid)
        strings = ('usbdev', 'Keyboard', None)
        super().__init__(Identity(speed, VENDOR, product, (Configuration((keys,)),),
                                  **{'strings': strings, **identity}))

    def control(self, request, kind, value, index, data):
        if request == 6 and value >> 8 == 0x22:
            return self.REPORT
        return bytes(8) if kind & IN else b''

    def press(self, usage=4):
        """Presses and releases a key (4 is A); whether the host listens."""
        return (self.interrupt(0x81, bytes([0, 0, usage, 0, 0, 0, 0, 0]))
                and self.interrupt(0x81, bytes(8)))


class BulkOnlyDisk(Device):
    """A disk with the bulk-only transport (USB Mass Storage Class, Bulk-Only Transport 1.0)."""

    def __init__(self, speed=HIGH, product=2, **identity):
        packet = {FULL: 64, HIGH: 512, SUPER: 1024}[speed]
        ends = (Endpoint(0x81, BULK, packet), Endpoint(0x02, BULK, packet))
        bulk_only = Interface(0, 8, 6, 0x50, ends)
        strings = ('usbdev', 'Disk', '0123456789AB')
        super().__init__(Identity(speed, VENDOR, product, (Configuration((bulk_only,)),),
                                  **{'strings': strings, **identity}))
        self.disk = Disk()
        self._wanted = 0                # bytes of the data phase, OUT
        self._command = b''
        self._taken = bytearray()
        self._queue = []                # what the next IN requests get

    def left(self):
        super().left()
        self._wanted, self._queue = 0, []

    def control(self, request, kind, value, index, data):
        if request == 0xfe:             # GET MAX LUN
            return b'\0'
        if request == 0xff:             # reset
            self._wanted, self._queue = 0, []
        return b''

    def bulk_out(self, endpoint, stream, data):
        if self._wanted:
            self._taken += data
            self._wanted -= len(data)
            if self._wanted <= 0:
                self.disk.write(self._command[15:31], self._taken)
                self._end(0, 0)
            return True
        if len(data) != 31 or data[:4] != b'USBC':
            return False
        self._command, self._taken = data, bytearray()
        length, = struct.unpack('<I', data[8:12])
        status, answer, wanted = self.disk.command(data[15:31])
        if wanted and wanted == length:
            self._wanted = wanted
            return True
        answer = answer[:length]
        if length and data[12] & IN:
            self._queue.append(answer)
        self._end(status, length - len(answer))
        return True

    def bulk_in(self, endpoint, stream, length):
        return self._queue.pop(0) if self._queue else None

    def _end(self, status, residue):
        tag = self._command[4:8]
        failed = 1 if status == CHECK_CONDITION else 0
        self._queue.append(b'USBS' + tag + struct.pack('<IB', residue, failed))
        # The host may ask already.
        while self._queue and self.feed(0x81, 0, self._queue[0]):
            self._queue.pop(0)


class UasDisk(Device):
    """A disk with USB Attached SCSI (UAS-2): four pipes, with streams at super speed."""

    COMMAND, STATUS, DATA_IN, DATA_OUT = 0x04, 0x81, 0x82, 0x03

    def __init__(self, speed=SUPER, product=3, **identity):
        packet, streams = {HIGH: (512, 0), SUPER: (1024, 4)}[speed]

        def pipe(address, number):
            has_streams = streams if number != 1 else 0
            return Endpoint(address, BULK, packet, 0, has_streams, bytes([4, 0x24, number, 0]))

        ends = (pipe(self.COMMAND, 1), pipe(self.STATUS, 2), pipe(self.DATA_IN, 3),
                pipe(self.DATA_OUT, 4))
        uas = Interface(0, 8, 6, 0x62, ends)
        strings = ('usbdev', 'UAS disk', '0123456789AC')
        super().__init__(Identity(speed, VENDOR, product, (Configuration((uas,)),),
                                  **{'strings': strings, **identity}))
        self.disk = Disk()
        self._has_streams = bool(streams)
        self._reads, self._writes, self._status = {}, {}, []

    def left(self):
        super().left()
        self._reads, self._writes, self._status = {}, {}, []

    def bulk_out(self, endpoint, stream, data):
        if endpoint == self.COMMAND:
            self._take_command(data)
        else:
            tag = stream if self._has_streams else next(iter(self._writes), 0)
            if tag not in self._writes:
                return False
            cdb, wanted, taken = self._writes[tag]
            taken += data
            if len(taken) >= wanted:
                del self._writes[tag]
                self.disk.write(cdb, taken)
                self._end(tag, 0)
        return True

    def bulk_in(self, endpoint, stream, length):
        if endpoint == self.STATUS:
            for place, (tag, unit) in enumerate(self._status):
                if stream in (0, tag):
                    del self._status[place]
                    return unit
            return None
        tag = stream if self._has_streams else next(iter(self._reads), 0)
        if tag not in self._reads:
            return None
        data = self._reads.pop(tag)
        self._end(tag, 0)
        return data

    def _take_command(self, unit):
        kind, tag = unit[0], struct.unpack('>H', unit[2:4])[0]
        if kind != 1:                   # task management: done
            self._send(tag, struct.pack('>BxHxxxB', 4, tag, 0))
            return
        cdb = unit[16:32]
        status, answer, wanted = self.disk.command(cdb)
        if wanted:
            self._writes[tag] = (cdb, wanted, bytearray())
            self._ready(tag, 7)
        elif answer:
            self._reads[tag] = answer
            self._ready(tag, 6)
            # The host may ask already.
            if self._has_streams and self.feed(self.DATA_IN, tag, answer):
                del self._reads[tag]
                self._end(tag, 0)
        else:
            self._end(tag, status)

    def _ready(self, tag, kind):
        """Without streams the device says which command the data pipe is for."""
        if not self._has_streams:
            self._send(tag, struct.pack('>BxH', kind, tag))

    def _end(self, tag, status):
        sense = self.disk.sense() if status == CHECK_CONDITION else b''
        self._send(tag, struct.pack('>BxHxxB7xH', 3, tag, status, len(sense)) + sense)

    def _send(self, tag, unit):
        stream = tag if self._has_streams else 0
        if not self.feed(self.STATUS, stream, unit):
            self._status.append((tag, unit))


class Hub(Device):
    """A hub without children (USB 2.0, chapter 11; USB 3.2, chapter 10)."""

    def __init__(self, speed=HIGH, product=4):
        change = Interface(0, 9, 0, 0, (Endpoint(0x81, INTERRUPT, 2, 12),))
        protocol = {FULL: 0, HIGH: 1, SUPER: 3}[speed]
        super().__init__(Identity(speed, VENDOR, product, (Configuration((change,)),), 9, 0,
                                  protocol, ('usbdev', 'Hub', None)))

    def control(self, request, kind, value, index, data):
        if request == 6:
            if self.identity.speed == SUPER:
                return bytes([12, 0x2a, 4, 9, 0, 50, 0, 0, 0, 0, 0, 0])
            return bytes([9, 0x29, 4, 9, 0, 50, 0, 0, 0xff])
        return bytes(4) if kind & IN else b''


class Vendor(Device):
    """A device of no class that the host has a driver for: a modem, a programmer, a board."""

    def __init__(self, speed=FULL, product=5, interfaces=1, configurations=1, dfu=False,
                 **identity):
        kind = (0xfe, 1, 2) if dfu else (0xff, 0, 0)
        packet = {LOW: 8, FULL: 64, HIGH: 512, SUPER: 1024}[speed]

        def configuration(number):
            numbers = range(interfaces)
            ends = (Endpoint(0x81, BULK, packet), Endpoint(0x02, BULK, packet))
            # Endpoints for the first one only: there are 30 of them at most.
            return Configuration(tuple(Interface(one, *kind, ends if one == 0 else ())
                                       for one in numbers), number)

        every = tuple(configuration(number + 1) for number in range(configurations))
        strings = ('usbdev', 'Vendor device', None)
        super().__init__(Identity(speed, VENDOR, product, every,
                                  **{'strings': strings, **identity}))

    def bulk_in(self, endpoint, stream, length):
        return b'usbdev'[:length]
