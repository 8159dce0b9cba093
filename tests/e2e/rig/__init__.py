"""A host in a box: a VM with Debian's kernel and systemd-udevd, USB ports that devices are
plugged into from outside, and nested QEMU guests with QMP sockets."""
from .error import RigError
from .guest import Guest
from .monitor import Event, Monitor
from .rig import Rig
from .settings import SUITE
from .snapshot import build, is_available

__all__ = ['SUITE', 'Event', 'Guest', 'Monitor', 'Rig', 'RigError', 'build', 'is_available']
