"""Saved states of a booted host VM, so that a test has one in two seconds instead of a minute.

'none' has no guest; 'seabios' and 'linux' go on from it and have the guest `windows`, paused.
'libvirt' has none either, and runs libvirtd; 'docker' runs dockerd, and has an image with QEMU in
CONTAINER; 'sysvinit' has no systemd.
"""
import contextlib
import os
import shutil
import sys

from . import cache, guest, image, packages, rootfs
from .command import run
from .error import VmError
from .host import Host
from .machine import hardware
from .progress import last_line, step
from .settings import RUN_DIR, cpu

KINDS = ('none', *guest.KINDS, 'libvirt', 'docker', 'sysvinit')
# The flavour of the host VM (rootfs.py) that a kind is of; all others are plain.
_FLAVOURS = {kind: kind for kind in ('libvirt', 'docker', 'sysvinit')}
_TRIES = 3


def build(*kinds, install=False):
    """Makes what is not there yet, so that up() is quick.  install: apt-get what is missing."""
    packages.require(install)
    for kind in kinds or KINDS:
        snapshot(kind)


def is_available():
    """Whether there is an image of the release, or the archive has the release."""
    return bool(cache.read_key('root')) or rootfs.is_in_archive()


def snapshot(kind):
    """(Image, path of the disk, path of the state); made now if need be."""
    files = image.build(_FLAVOURS.get(kind, ''))
    return files, *_files(kind, files)


def _files(kind, files):
    has_guest = kind in guest.KINDS
    base = _files('none', files) if has_guest else None
    command = guest.Guest(None).command(kind) if has_guest else []
    key = cache.digest(files.key, kind, command, hardware(), cpu('model name'),
                       run('qemu-system-x86_64', '--version'))
    folder = cache.entry(f'snapshot-{kind}', key, lambda new: _fill(new, kind, files, base))
    return f'{folder}/disk.img', f'{folder}/state'


def _fill(folder, kind, files, base):
    for left in reversed(range(_TRIES)):
        try:
            return _make(folder, kind, files, base)
        except VmError as error:
            # Under TCG the nested guest's boot hangs once in a while, or all of QEMU with it.
            if not left:
                raise
            print(f'  {error}; once more', file=sys.stderr)


def _make(folder, kind, files, base):
    disk, state = base or (files.disk, None)
    run('cp', '--sparse=always', '--reflink=auto', disk, f'{folder}/disk.img')
    host = Host(f'{RUN_DIR}/snapshot-{kind}-{os.getpid()}')
    console = f'{host.machine.folder}/console.log'
    if kind not in guest.KINDS:
        progress = step('host VM: boot and snapshot', lambda: last_line(console))
    else:
        progress = step(f'{kind} guest in the host VM: boot and snapshot')
    try:
        with progress:
            host.boot(files, f'{folder}/disk.img', state=state, writable=True)
            if kind in guest.KINDS:
                host.guest().start(kind)
            # "degraded" is a state to be saved too, so the exit status does not matter
            host.exec('systemctl is-system-running --wait; udevadm settle; sync', timeout=300)
            if kind in guest.KINDS:
                host.guest().qmp('stop')
            host.machine.save(f'{folder}/state')
    except VmError:
        with contextlib.suppress(OSError):
            shutil.copy(console, f'{os.path.dirname(folder)}/failed-{kind}.log')
        raise
    finally:
        host.down()
