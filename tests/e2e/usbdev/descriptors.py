"""Descriptors (USB 2.0, chapter 9; USB 3.2, chapter 9), declared as data."""
import dataclasses
import struct

LOW, FULL, HIGH, SUPER = range(4)
CONTROL, ISOCHRONOUS, BULK, INTERRUPT = range(4)
IN = 0x80

# bMaxPacketSize0, which is an exponent for super speed, and bcdUSB.
_PACKET_0 = {LOW: 8, FULL: 64, HIGH: 64, SUPER: 9}
_BCD_USB = {LOW: 0x0110, FULL: 0x0110, HIGH: 0x0200, SUPER: 0x0300}


@dataclasses.dataclass
class Endpoint:
    """An endpoint; bit 7 of the address is set for IN."""

    address: int
    kind: int
    packet: int
    interval: int = 0
    streams: int = 0            # as a power of 2
    extra: bytes = b''          # class-specific descriptors behind it

    def encode(self, speed):
        data = struct.pack('<BBBBHB', 7, 5, self.address, self.kind, self.packet, self.interval)
        if speed == SUPER:      # the companion
            periodic = self.packet if self.kind == INTERRUPT else 0
            data += struct.pack('<BBBBH', 6, 0x30, 0, self.streams, periodic)
        return data + self.extra

    @property
    def index(self):
        """Its place in usbredir's tables: OUT endpoints first."""
        return (self.address & 0xf) | (16 if self.address & IN else 0)


@dataclasses.dataclass
class Interface:
    """One alternate setting of an interface."""

    number: int
    cls: int
    subclass: int = 0
    protocol: int = 0
    endpoints: tuple = ()
    extra: bytes = b''          # class-specific descriptors, such as HID's
    alternate: int = 0

    def encode(self, speed):
        head = struct.pack('<BBBBBBBBB', 9, 4, self.number, self.alternate, len(self.endpoints),
                           self.cls, self.subclass, self.protocol, 0)
        return head + self.extra + b''.join(one.encode(speed) for one in self.endpoints)


@dataclasses.dataclass
class Configuration:
    """A configuration: its interfaces with all their alternate settings."""

    interfaces: tuple
    number: int = 1

    def encode(self, speed):
        body = b''.join(interface.encode(speed) for interface in self.interfaces)
        count = len({interface.number for interface in self.interfaces})
        head = struct.pack('<BBHBBBBB', 9, 2, 9 + len(body), count, self.number, 0, 0x80, 50)
        return head + body


@dataclasses.dataclass
class Identity:
    """All that a device says it is."""

    speed: int
    vendor: int
    product: int
    configurations: tuple
    cls: int = 0
    subclass: int = 0
    protocol: int = 0
    # Manufacturer, product name, serial number: text, bytes to be sent as they are, or None.
    strings: tuple = (None, None, None)
    # SuperSpeedPlus: a capability in the BOS that names 10 Gb/s.
    super_speed_plus: bool = False

    def descriptor(self, kind, index):
        """The descriptor that GET_DESCRIPTOR asks for; None if there is none."""
        if kind == 1:
            numbers = [number if text is not None else 0
                       for number, text in enumerate(self.strings, 1)]
            return struct.pack('<BBHBBBBHHHBBBB', 18, 1, _BCD_USB[self.speed], self.cls,
                               self.subclass, self.protocol, _PACKET_0[self.speed], self.vendor,
                               self.product, 0x0100, *numbers, len(self.configurations))
        if kind == 2 and index < len(self.configurations):
            return self.configurations[index].encode(self.speed)
        if kind == 3:
            return self._string(index)
        if kind == 6 and self.speed == HIGH:       # the qualifier: as at full speed
            return struct.pack('<BBHBBBBBB', 10, 6, 0x0200, self.cls, self.subclass,
                               self.protocol, 64, len(self.configurations), 0)
        if kind == 15 and self.speed == SUPER:
            return self._bos()
        return None

    def _string(self, index):
        if index == 0:
            return struct.pack('<BBH', 4, 3, 0x0409)
        text = self.strings[index - 1] if index <= len(self.strings) else None
        if text is None:
            return None
        data = text if isinstance(text, bytes) else text.encode('utf-16-le')
        return bytes([2 + len(data), 3]) + data

    def _bos(self):
        capabilities = [struct.pack('<BBBI', 7, 16, 2, 2),
                        struct.pack('<BBBBHBBH', 10, 16, 3, 0, 0x000e, 1, 10, 0x07ff)]
        if self.super_speed_plus:                   # one sublink speed each way, 10 Gb/s
            capabilities.append(struct.pack('<BBBBIHHII', 28, 16, 10, 0, 1, 0x1100, 0,
                                            0x000a4030, 0x000a40b0) + bytes(4))
        body = b''.join(capabilities)
        return struct.pack('<BBHB', 5, 15, 5 + len(body), len(capabilities)) + body
