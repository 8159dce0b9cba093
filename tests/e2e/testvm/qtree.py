"""Reads the USB devices out of QEMU's `info qtree`.

`info usb` would be shorter, but it lists devices that are not attached (a usb-host whose device
was pulled) as if they were.
"""
import dataclasses
import re

# Below "dev: usb-host, id "x"", between the device's properties and its own buses.
_USB_LINE = re.compile(r'addr (?P<addr>\S+), port (?P<port>\S+), speed (?P<speed>\S+), '
                       r'name (?P<name>.*?)(?P<attached>, attached)?$')


@dataclasses.dataclass(frozen=True)
class UsbDevice:
    """A USB device of a guest, as its QEMU sees it."""
    id: str             # '' where it was given none
    driver: str         # 'usb-host' for a device of the host
    bus: str            # 'xhci0.0'
    port: str           # the guest's port, '1' or '1.2'
    speed: str          # '480', in Mb/s
    name: str           # the product
    attached: bool      # really there; for usb-host: really open
    properties: dict    # hostbus, hostport, hostaddr ... as text


def usb_devices(text):
    """All UsbDevices in the text of `info qtree`."""
    devices, driver, name, bus, properties = [], '', '', '', {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith('bus: '):
            bus = line[5:]
        elif line.startswith('dev: '):
            driver, _, name = line[5:].partition(', id ')
            properties = {}
        elif ' = ' in line:
            key, _, value = line.partition(' = ')
            properties[key] = value.strip('"')
        elif found := _USB_LINE.match(line):
            devices.append(UsbDevice(name.strip('"'), driver, bus, found['port'], found['speed'],
                                     found['name'], bool(found['attached']), properties))
    return devices
