"""Root file systems of Debian releases, as mmdebstrap makes them: root.tar.

Everything that is our own is added later, in image.py, so that this slow step is seldom redone.
"""
import os
import re
import tempfile

from . import cache
from .command import run
from .error import VmError
from .progress import last_line, step
from .settings import RELEASE, SUITE

_HOST = ('systemd systemd-sysv udev dbus kmod util-linux procps iproute2 file usbutils python3 '
         'strace socat busybox-static qemu-system-x86 lvm2 mdadm').split()
_LIBVIRT = ('apparmor libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu '
            'libvirt-daemon-system udisks2').split()
_PODMAN = 'podman crun uidmap'.split()
# Neither systemd nor its journal; udev needs what makes its users and groups.
_SYSVINIT = ('sysvinit-core sysv-rc initscripts insserv startpar systemd-standalone-sysusers '
             'systemd-standalone-tmpfiles udev kmod rsyslog orphan-sysvinit-scripts procps iproute2 '
             'python3 busybox-static qemu-system-x86').split()
_DOCKER = 'docker.io docker-cli docker-compose apparmor iptables ca-certificates'.split()
# What there is beside the packages of minbase, by flavour: host VMs, and a root with a QEMU and
# no more, for tests that run in a chroot.
FLAVOURS = {'': _HOST, 'libvirt': [*_HOST, *_LIBVIRT, *_PODMAN], 'sysvinit': _SYSVINIT,
            'docker': [*_HOST, *_DOCKER], 'qemu': ['qemu-system-x86']}
_WITHOUT_KERNEL = {'qemu'}
# Only downloaded and unpacked, below /kernel: installed, it would bring initramfs-tools and its
# hooks.  (Debian's cloud kernel has no USB at all.)  Since 7.x (forky) that package is empty and
# depends on the two that have it.
_KERNEL_HOOK = r'''set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p')
parts=$(apt-cache depends $package | sed -n 's/^ *Depends: \(linux-\(base\|binary\|modules\)-[0-9]\)/\1/p')
mkdir "$1/kernel"
cd "$1/kernel"
apt-get download $package $parts
for deb in ./*.deb; do dpkg-deb -x $deb .; done
rm ./*.deb
'''
_LEFT_OUT = ('doc', 'man', 'locale', 'info', 'icons', 'lintian')      # of /usr/share
_SOURCES = ('/etc/apt/sources.list', '/etc/apt/sources.list.d/debian.sources')
# What of this machine's apt configuration says how to reach an archive.
_APT_OPTIONS = re.compile(r'^Acquire::((https?|ftp)::|Check-|Retries|ForceIPv)')


def tarball(flavour=''):
    """(path of root.tar, its key); in that of a host VM, /kernel has the kernel's package, unpacked."""
    packages = FLAVOURS[flavour]
    hook = '' if flavour in _WITHOUT_KERNEL else _KERNEL_HOOK
    key = cache.digest(SUITE, packages, hook, _LEFT_OUT)
    name = cache.name('root', flavour)
    return f'{cache.entry(name, key, lambda folder: _fill(folder, packages, hook))}/root.tar', key


def is_in_archive(suite=SUITE):
    """Whether the archive still has the release; raises VmError if it cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run('/usr/lib/apt/apt-helper', 'download-file', f'{_mirror(suite)}/dists/{suite}/Release',
                f'{folder}/Release')
        except VmError as error:
            if suite == 'stable':
                raise VmError(f'Debian\'s archive cannot be reached: {error}') from None
            is_in_archive('stable')
            return False
    return True


def _fill(folder, packages, kernel_hook):
    if os.geteuid() != 0:
        raise VmError('only root can build the root file system')
    log = f'{os.path.dirname(folder)}/mmdebstrap.log'
    options = ['--variant=minbase', '--include=' + ','.join(packages),
               '--aptopt=APT::Install-Recommends "false"',
               *[f'--aptopt={option}' for option in _apt_options()],
               *[f'--dpkgopt=path-exclude=/usr/share/{name}/*' for name in _LEFT_OUT]]
    if kernel_hook:
        options.append(f'--customize-hook={kernel_hook}')
    if SUITE != RELEASE:
        options.append(f'--aptopt=APT::Default-Release "{SUITE}"')
    if RELEASE == 'bullseye':     # later releases are born merged
        options.append('--setup-hook=/usr/share/mmdebstrap/hooks/merged-usr/setup00.sh')
    with step(f'Debian {SUITE} (mmdebstrap)', lambda: last_line(log)):
        # TMPDIR: not /tmp, which is often in memory and small
        run('mmdebstrap', *options, RELEASE, f'{folder}/root.tar', *_sources(),
            log=log, TMPDIR=folder)


def _sources():
    """The sources of the release: this machine's own (they may name a mirror near it), else the
    mirror's main section."""
    found = []
    for path in _SOURCES:
        text = _read(path)
        if re.search(rf'\s{SUITE}\s', text) and 'cdrom:' not in text:
            found.append(path)
    suites = dict.fromkeys([RELEASE, SUITE])
    return found or [f'deb {_mirror(suite)} {suite} main' for suite in suites]


def _mirror(suite):
    """Where this machine gets Debian from."""
    archive = 'debian-security' if suite.endswith('-security') else 'debian'
    for path in _SOURCES:
        if found := re.search(rf'\bhttps?://\S+/{archive}/?(?=\s)', _read(path)):
            return found[0].rstrip('/')
    return f'http://deb.debian.org/{archive}'


def _read(path):
    try:
        with open(path) as file:
            return ''.join(line for line in file if not line.startswith('#'))
    except OSError:
        return ''


def _apt_options():
    """Proxies and the like, from this machine's apt: mmdebstrap's apt does not read them."""
    return [line for line in run('apt-config', 'dump').splitlines()
            if _APT_OPTIONS.match(line) and not line.endswith(' "";')]
