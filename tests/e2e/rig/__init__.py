"""A host in a box: a VM with Debian's kernel and systemd-udevd, USB ports that devices are
plugged into from outside, and nested QEMU guests with QMP sockets."""
from .error import RigError
from .guest import Guest
from .monitor import Event, Monitor
from .rig import Rig
from .snapshot import build

__all__ = ['Event', 'Guest', 'Monitor', 'Rig', 'RigError', 'build']
