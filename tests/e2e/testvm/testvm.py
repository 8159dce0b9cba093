"""What a test uses: a Host that comes out of a snapshot and is gone afterwards."""
import atexit
import glob
import itertools
import os

from . import image
from .error import VmError
from .guest import KINDS
from .host import Host
from .machine import Machine
from .settings import RUN_DIR
from .snapshot import snapshot

_numbers = itertools.count()


class TestVm(Host):
    """A host VM of that name (each has its own if none is given); several may be up.

    with TestVm() as vm:
        vm.up(guest='linux')
        vm.plug('kbd', '1')
    """

    def __init__(self, name=None, keep=False):
        """keep: it stays up when this process ends, until someone calls down()."""
        self.name = name or f'{os.getpid()}-{next(_numbers)}'
        self._keep = keep
        super().__init__(f'{RUN_DIR}/{self.name}')

    def up(self, guest='seabios', devices=()):
        """Has it running; guest: one of KINDS in snapshot.py, which is `windows` then.  devices: more
        for its QEMU's -device; then it boots, and the guest after it, which takes a minute."""
        if self.machine.alive():
            raise VmError(f'the test VM {self.name} is up already')
        _sweep()
        if not self._keep:
            atexit.register(self.down)
        if devices:
            files = image.build()
            self.boot(files, files.disk, keep=self._keep, devices=devices)
            self.exec('systemctl is-system-running --wait; udevadm settle', timeout=300)
            if guest in KINDS:
                self.guest().start(guest)
            return self
        files, disk, state = snapshot(guest)
        self.boot(files, disk, state=state, keep=self._keep)
        if guest in KINDS:
            self.guest().qmp('cont')
        return self

    def down(self):
        """Ends it; nothing of it stays."""
        super().down()
        atexit.unregister(self.down)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()


def _sweep():
    """Removes the files of test VMs whose process was killed: their QEMU has ended with it."""
    for folder in glob.glob(f'{RUN_DIR}/*'):
        if os.path.exists(f'{folder}/pid'):         # else it is just being made
            machine = Machine(folder)
            if not machine.alive():
                machine.stop()
