"""What this machine must have for the test VM, and apt-get to get it."""
import os
import shutil

from .command import run
from .error import VmError
from .progress import step

# a tool -> the Debian package that has it
_TOOLS = {
    'qemu-system-x86_64': 'qemu-system-x86',
    'mmdebstrap': 'mmdebstrap',
    'mke2fs': 'e2fsprogs',
    'depmod': 'kmod',
    'setpriv': 'util-linux',
    'tar': 'tar',
    # explanations of journal lines
    'journalctl': 'systemd',
    # what an idle event costs
    'strace': 'strace',
    'valgrind': 'valgrind',
    # where completion is tested
    'zsh': 'zsh',
    'fish': 'fish',
    'script': 'bsdutils',
    # what renders the man pages
    'man': 'man-db',
    'mandoc': 'mandoc',
}


def require(install):
    """Raises when a package is missing; with install, has apt-get install it."""
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    missing = sorted({package for tool, package in _TOOLS.items()
                      if not shutil.which(tool, path=path)})
    if not missing:
        return
    if not install:
        raise VmError(f'missing packages: {" ".join(missing)}; apt-get install them, or let '
                       '--install do it, as root')
    with step(f'apt-get install {" ".join(missing)}'):
        run('apt-get', 'update', '-qq')
        run('apt-get', 'install', '-y', '-qq', '--no-install-recommends', *missing,
            DEBIAN_FRONTEND='noninteractive')
