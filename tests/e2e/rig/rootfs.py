"""The host VM's root file system and kernel, as Debian ships them: root.tar by mmdebstrap.

Everything that is our own is added later, in image.py, so that this slow step is seldom redone.
"""
import os
import re

from . import cache
from .command import run
from .error import RigError
from .progress import last_line, step
from .settings import SUITE

PACKAGES = ('systemd systemd-sysv udev dbus kmod util-linux procps iproute2 file usbutils python3 '
            'strace socat busybox-static qemu-system-x86').split()
# What a host VM has more, by its flavour.
FLAVOURS = {
    '': [],
    'libvirt': ('apparmor libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu '
                'libvirt-daemon-system udisks2').split(),
}
# Only downloaded and unpacked, below /kernel: installed, it would bring initramfs-tools and its
# hooks.  (Debian's cloud kernel has no USB at all.)
_KERNEL_HOOK = r'''set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p')
mkdir "$1/kernel"
cd "$1/kernel"
apt-get download $package
dpkg-deb -x ./*.deb .
rm ./*.deb
'''
_LEFT_OUT = ('doc', 'man', 'locale', 'info', 'icons', 'lintian')      # of /usr/share
_SOURCES = ('/etc/apt/sources.list', '/etc/apt/sources.list.d/debian.sources')
# What of this machine's apt configuration says how to reach an archive.
_APT_OPTIONS = re.compile(r'^Acquire::((https?|ftp)::|Check-|Retries|ForceIPv)')


def tarball(flavour=''):
    """(path of root.tar, its key); /kernel in it has the kernel's package, unpacked."""
    packages = [*PACKAGES, *FLAVOURS[flavour]]
    key = cache.digest(SUITE, packages, _KERNEL_HOOK, _LEFT_OUT)
    name = cache.name('root', flavour)
    return f'{cache.entry(name, key, lambda folder: _fill(folder, packages))}/root.tar', key


def _fill(folder, packages):
    if os.geteuid() != 0:
        raise RigError('only root can build the root file system')
    log = f'{os.path.dirname(folder)}/mmdebstrap.log'
    with step(f'Debian {SUITE} for the host VM (mmdebstrap)', lambda: last_line(log)):
        run('mmdebstrap', '--variant=minbase', '--include=' + ','.join(packages),
            '--aptopt=APT::Install-Recommends "false"',
            *[f'--aptopt={option}' for option in _apt_options()],
            *[f'--dpkgopt=path-exclude=/usr/share/{name}/*' for name in _LEFT_OUT],
            f'--customize-hook={_KERNEL_HOOK}',
            SUITE, f'{folder}/root.tar', *_sources(),
            # not /tmp, which is often in memory and small
            log=log, TMPDIR=folder)


def _sources():
    """This machine's own sources of that release (they may name a mirror near it); mmdebstrap
    takes deb.debian.org if there are none."""
    found = []
    for path in _SOURCES:
        try:
            with open(path) as file:
                text = ''.join(line for line in file if not line.startswith('#'))
        except OSError:
            continue
        if re.search(rf'\s{SUITE}\s', text) and 'cdrom:' not in text:
            found.append(path)
    return found


def _apt_options():
    """Proxies and the like, from this machine's apt: mmdebstrap's apt does not read them."""
    return [line for line in run('apt-config', 'dump').splitlines()
            if _APT_OPTIONS.match(line) and not line.endswith(' "";')]
