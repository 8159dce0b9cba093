"""The SCSI commands of a disk (SPC-4, SBC-3), as far as Linux needs them."""
import struct

BLOCK = 512
GOOD, CHECK_CONDITION = 0, 2


class Disk:
    """A disk in memory, which a test can read and write on the device's side."""

    def __init__(self, size=4 << 20):
        self.data = bytearray(size)
        self._sense = bytes(18)

    def command(self, cdb):
        """(status, data to send, bytes that it takes) of a command."""
        blocks = len(self.data) // BLOCK
        code = cdb[0]
        if code == 0x12 and not cdb[1] & 1:         # INQUIRY
            text = b'usbdev  ' + b'DISK            ' + b'1.0 '
            return GOOD, struct.pack('>BBBBBBBB', 0, 0, 6, 2, 31, 0, 0, 2) + text, 0
        if code == 0x25:                            # READ CAPACITY (10)
            return GOOD, struct.pack('>II', blocks - 1, BLOCK), 0
        if code == 0x9e and cdb[1] & 0x1f == 0x10:  # READ CAPACITY (16)
            return GOOD, struct.pack('>QI', blocks - 1, BLOCK) + bytes(20), 0
        if code in (0x28, 0x2a):                    # READ (10), WRITE (10)
            start, count = struct.unpack('>IxH', cdb[2:9])
            if start + count > blocks:
                return self._fail(5, 0x21)
            if code == 0x28:
                return GOOD, bytes(self.data[start * BLOCK:(start + count) * BLOCK]), 0
            return GOOD, b'', count * BLOCK
        if code == 0x03:                            # REQUEST SENSE
            sense, self._sense = self._sense, bytes(18)
            return GOOD, sense, 0
        if code == 0x1a:                            # MODE SENSE (6)
            return GOOD, bytes([3, 0, 0, 0]), 0
        if code == 0xa0:                            # REPORT LUNS
            return GOOD, struct.pack('>II', 8, 0) + bytes(8), 0
        if code in (0x00, 0x1b, 0x1e, 0x35):        # TEST UNIT READY, START STOP, PREVENT, SYNC
            return GOOD, b'', 0
        return self._fail(5, 0x20)                  # invalid command

    def write(self, cdb, data):
        """Takes the data of a WRITE."""
        start, = struct.unpack('>I', cdb[2:6])
        self.data[start * BLOCK:start * BLOCK + len(data)] = data

    def sense(self):
        """The sense data of the last failure."""
        return self._sense

    def _fail(self, key, code):
        self._sense = struct.pack('>BBBIBIBB', 0x70, 0, key, 0, 10, 0, code, 0) + bytes(4)
        return CHECK_CONDITION, b'', 0
