"""The host VM's disk image, its kernel and its initramfs, made from root.tar and tests/e2e/host.

Nothing here runs the VM: that is machine.py.
"""
import dataclasses
import glob
import lzma
import os
import shutil

from . import cache, rootfs
from .command import run
from .initramfs import initramfs
from .progress import step

_HERE = os.path.dirname(os.path.abspath(__file__))
_HOST, _GUEST = f'{_HERE}/../host', f'{_HERE}/../guest'
# In the flavour 'docker', the root file system of a container with QEMU.
CONTAINER = '/opt/container.tar'
_HOST_MODULES = ['virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4']
_GUEST_MODULES = ['xhci_pci', 'usbhid', 'hid_generic', 'evdev', 'usb_storage', 'uas', 'sd_mod',
                  'snd_usb_audio', 'ftdi_sio', 'cdc_acm']
# Module folders that no test needs; without them the image is made in half the time.
_NO_MODULES = ('drivers/gpu', 'drivers/net/ethernet', 'drivers/net/wireless', 'drivers/infiniband',
               'drivers/staging', 'drivers/iio', 'drivers/mtd', 'drivers/isdn', 'drivers/edac',
               'drivers/thunderbolt', 'drivers/nvme', 'fs/btrfs', 'fs/xfs', 'fs/ocfs2', 'fs/gfs2',
               'fs/ceph', 'fs/nfs', 'fs/reiserfs', 'fs/jfs', 'fs/f2fs', 'fs/ubifs',
               'net/bluetooth', 'net/mac80211', 'net/wireless', 'net/openvswitch', 'sound/soc')
# Units that would cost time at boot or send events of their own during a test.
_MASKED = ('getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer '
           'dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service '
           'systemd-timesyncd.service systemd-random-seed.service').split()


@dataclasses.dataclass(frozen=True)
class Image:
    """The files that a host VM boots from."""
    disk: str
    kernel: str
    initrd: str
    key: str


def build(flavour=''):
    """The Image of that flavour; made now if it is not there yet."""
    tarball, root_key = rootfs.tarball(flavour)
    # The code that makes the image is part of what it is made from.
    sources = [_HOST, _GUEST, _of(flavour), f'{_HERE}/image.py', f'{_HERE}/initramfs.py']
    key = cache.digest(root_key, *[part for source in sources for part in _contents(source)])

    def fill(folder):
        with step('disk image of the host VM'):
            _fill(folder, tarball, flavour)

    folder = cache.entry(cache.name('image', flavour), key, fill)
    return Image(f'{folder}/disk.img', f'{folder}/vmlinux', f'{folder}/initrd', key)


def _contents(source):
    if os.path.isfile(source):
        yield from (os.path.basename(source), _read(source))
    for path in sorted(glob.glob(f'{source}/**', recursive=True)):
        if os.path.isfile(path) and '__pycache__' not in path:
            yield from (os.path.relpath(path, source), _read(path))


def _fill(folder, tarball, flavour):
    root = f'{folder}/root'
    os.makedirs(root)
    run('tar', '-xf', tarball, '-C', root, '--exclude=./dev/*')
    module_dir = _install_kernel(root, f'{folder}/vmlinux')
    _install_host(root, flavour)
    os.makedirs(f'{root}/opt/testvm/guest')
    shutil.copy(f'{folder}/vmlinux', f'{root}/opt/testvm/guest/vmlinux')
    _write(f'{root}/opt/testvm/guest/initrd',
           initramfs(root, module_dir, f'{_GUEST}/init', _GUEST_MODULES))
    _write(f'{folder}/initrd',
           initramfs(root, module_dir, f'{_HOST}/initrd-init', _HOST_MODULES))
    if flavour == 'docker':
        shutil.copy(rootfs.tarball('qemu')[0], root + CONTAINER)
    with open(f'{folder}/disk.img', 'wb') as disk:
        disk.truncate(3 << 30)
    # No journal: the disk is never used again after a crash.
    run('mke2fs', '-q', '-F', '-t', 'ext4', '-O', '^has_journal', '-d', root, f'{folder}/disk.img')
    shutil.rmtree(root)


def _install_kernel(root, vmlinux):
    """Moves the unpacked package's modules to where they belong; returns their folder."""
    package = f'{root}/kernel'
    modules, = glob.glob(f'{package}/lib/modules/*') or glob.glob(f'{package}/usr/lib/modules/*')
    vmlinuz = glob.glob(f'{package}/boot/vmlinuz-*') or [f'{modules}/vmlinuz']
    _write(vmlinux, _uncompressed(_read(vmlinuz[0])))
    for name in _NO_MODULES:
        shutil.rmtree(f'{modules}/kernel/{name}', ignore_errors=True)
    os.makedirs(f'{root}/usr/lib/modules', exist_ok=True)
    target = shutil.move(modules, f'{root}/usr/lib/modules')
    shutil.rmtree(package)
    run('depmod', '-b', root, os.path.basename(target))
    return target


def _uncompressed(vmlinuz):
    """The ELF kernel in a bzImage: QEMU starts it through its PVH entry, which saves the slow
    decompression under TCG.  A kernel that is not packed by xz boots as it is."""
    start = vmlinuz.find(b'\xfd7zXZ\0')
    if start < 0:
        return vmlinuz
    return lzma.LZMADecompressor().decompress(vmlinuz[start:])


def _of(flavour):
    """The directory of what only this flavour has, which need not be there."""
    return f'{_HOST}-{flavour}'


def _install_host(root, flavour):
    """Our own part: host/etc becomes /etc, the programs go to /opt/testvm."""
    for source in (_HOST, _of(flavour)):
        if os.path.isdir(source):
            shutil.copytree(f'{source}/etc', f'{root}/etc', dirs_exist_ok=True)
    os.makedirs(f'{root}/opt/testvm')
    for program in glob.glob(f'{_HOST}/*.py'):
        shutil.copy(program, f'{root}/opt/testvm')
    units = f'{root}/etc/systemd/system'
    os.makedirs(f'{units}/multi-user.target.wants', exist_ok=True)
    _symlink('../testvm-agent.service', f'{units}/multi-user.target.wants/testvm-agent.service')
    _symlink('/lib/systemd/system/multi-user.target', f'{units}/default.target')
    for unit in _MASKED:
        _symlink('/dev/null', f'{units}/{unit}')


def _symlink(target, path):
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def _read(path):
    with open(path, 'rb') as file:
        return file.read()


def _write(path, data):
    with open(path, 'wb') as file:
        file.write(data)
