"""Makes an initramfs: busybox, one init script, and the kernel modules that it loads in order."""
import lzma
import os
import stat

from .error import VmError

_FOLDER, _PROGRAM, _FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644


def initramfs(root, module_dir, init, modules):
    """The archive's bytes.  root: where busybox is; module_dir: /lib/modules/VERSION, after
    depmod; init: the script's path; modules: names, to which what they need is added."""
    archive = _Cpio()
    for name in ('bin', 'dev', 'proc', 'sys', 'lib', 'root', 'tmp', 'run'):
        archive.add(name, _FOLDER)
    archive.add('dev/console', stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add('dev/null', stat.S_IFCHR | 0o666, device=(1, 3))
    archive.add('bin/busybox', _PROGRAM, _read(f'{root}/bin/busybox'))
    archive.add('init', _PROGRAM, _read(init))
    names = []
    for path in _closure(module_dir, modules):
        data, name = _read(f'{module_dir}/{path}'), os.path.basename(path)
        if name.endswith('.xz'):      # busybox's insmod takes them only as they are
            data, name = lzma.decompress(data), name.removesuffix('.xz')
        archive.add(f'lib/{name}', _FILE, data)
        names.append(name)
    archive.add('modules.order', _FILE, '\n'.join(names).encode())
    return archive.end()


class _Cpio:
    """An archive in the kernel's own format, cpio "newc"."""

    def __init__(self):
        self._data = bytearray()
        self._inode = 0

    def add(self, name, mode, data=b'', device=(0, 0)):
        self._inode += 1
        path = name.encode() + b'\0'
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self._pad(b'070701' + b''.join(b'%08x' % field for field in fields) + path)
        self._pad(data)

    def _pad(self, data):
        self._data += data
        self._data += b'\0' * (-len(self._data) % 4)

    def end(self):
        self.add('TRAILER!!!', 0)
        return bytes(self._data)


def _closure(module_dir, names):
    """The paths of the modules and of all that they need, each after what it needs."""
    needs = {}
    for line in _read(f'{module_dir}/modules.dep').decode().splitlines():
        path, _, rest = line.partition(':')
        needs[path] = rest.split()
    path_of = {_module(path): path for path in needs}
    builtin = {_module(path) for path in _read(f'{module_dir}/modules.builtin').decode().split()}
    order = []

    def visit(path):
        for needed in needs[path]:
            visit(needed)
        if path not in order:
            order.append(path)

    for name in names:
        if name in path_of:
            visit(path_of[name])
        elif name not in builtin and name != 'crc32c_generic':    # none since Linux 6.16
            raise VmError(f'the kernel has no module {name}')
    return order


def _module(path):
    return os.path.basename(path).partition('.ko')[0].replace('-', '_')


def _read(path):
    with open(path, 'rb') as file:
        return file.read()
