"""A host in a box: a VM with Debian's kernel and systemd-udevd, USB ports that devices are
plugged into from outside, and nested QEMU guests with QMP sockets."""
from .error import VmError
from .guest import Guest
from .image import CONTAINER
from .monitor import Event, Monitor
from .testvm import TestVm
from .settings import RELEASE, SUITE
from .snapshot import build, is_available

__all__ = ['CONTAINER', 'RELEASE', 'SUITE', 'Event', 'Guest', 'Monitor', 'TestVm', 'VmError', 'build',
           'is_available']
