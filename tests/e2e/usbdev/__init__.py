"""USB devices in Python for the host VM's real xHCI driver: each is a usbredir server that the outer
QEMU connects to (`usb-redir`).

    descriptors.py   what a device says it is
    redir.py         the usbredir protocol, and the thread that speaks it
    device.py        a device: its descriptors, its answers, how it misbehaves
    kinds.py         keyboards, disks, hubs and odd ones
    scsi.py          the commands of a disk, for bulk-only transport and UAS
"""
from .device import Device
from .kinds import BulkOnlyDisk, Hub, Keyboard, UasDisk, Vendor

__all__ = ['BulkOnlyDisk', 'Device', 'Hub', 'Keyboard', 'UasDisk', 'Vendor']
