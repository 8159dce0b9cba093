"""The host VM's USB ports: emulated devices are plugged into and pulled out of them.

A port is '1'..'12' of the first controller, 'xhci2:1'..'xhci2:8' of the second, '2.1' behind a
hub in port 2.  Full- and high-speed devices appear in it as 1-1, super-speed ones as 2-1.
"""
import contextlib
import json
import os

from .command import run
from .error import VmError

# kind -> (QEMU's device, its options); any other kind is a QEMU device by its own name
KINDS = {
    'kbd': ('usb-kbd', {}),
    'mouse': ('usb-mouse', {}),
    'tablet': ('usb-tablet', {}),
    'audio': ('usb-audio', {'audiodev': 'snd0'}),
    'hub': ('usb-hub', {}),
    'serial': ('usb-serial', {'always-plugged': True}),
    'storage': ('usb-storage', {}),
    'uas': ('usb-uas', {}),
    'net': ('usb-net', {}),
    'ccid': ('usb-ccid', {}),
}


class Ports:
    """What is plugged where; kept in a file too, for one command line after the other."""

    def __init__(self, machine):
        self._machine = machine
        self._devices = {}              # id: the Device in Python behind it

    def plug(self, kind, port, **options):
        """Plugs a device; options go to QEMU's device_add (serial='X').  Returns its id."""
        plugged = self._load()
        number = plugged['count']
        driver, defaults = KINDS.get(kind, (kind, {}))
        controller, _, place = str(port).rpartition(':')
        name = f'{kind}{number}'
        device = {'driver': driver, 'id': name, 'bus': f'{controller or "xhci"}.0', 'port': place,
                  **defaults, **self._backend(kind, f'back{number}'), **options}
        self._qmp('device_add', **device)
        if kind == 'uas':
            self._qmp('device_add', driver='scsi-hd', bus=f'{name}.0', drive=f'back{number}')
            # a hot-plugged usb-uas waits for its disk, then for this word
            self._qmp('qom-set', path=f'/machine/peripheral/{name}', property='attached',
                      value=True)
        plugged['count'] += 1
        plugged['ports'][name] = str(port)
        self._store(plugged)
        return name

    def plug_device(self, device, port):
        """Plugs a device of usbdev.  Returns its id."""
        plugged = self._load()
        name = f'redir{plugged["count"]}'
        path = f'{self._machine.folder}/{name}.sock'
        device.serve(path)
        self._devices[name] = device
        self._qmp('chardev-add', id=f'{name}-socket', backend={'type': 'socket', 'data': {
            'addr': {'type': 'unix', 'data': {'path': path}}, 'server': False}})
        controller, _, place = str(port).rpartition(':')
        self._qmp('device_add', driver='usb-redir', id=name, chardev=f'{name}-socket',
                  bus=f'{controller or "xhci"}.0', port=place)
        plugged['count'] += 1
        plugged['ports'][name] = str(port)
        self._store(plugged)
        return name

    def plug_together(self, *devices):
        """Plugs several (kind, port) at one and the same moment of the host."""
        with self._machine.paused():
            return [self.plug(kind, port) for kind, port in devices]

    def unplug(self, port):
        """Pulls the device in that port (or with that id), with all that is behind it."""
        plugged = self._load()
        ports = plugged['ports']
        name = port if port in ports else next((n for n in ports if ports[n] == str(port)), None)
        if not name:
            raise VmError(f'nothing is plugged into {port}; plugged: {ports}')
        self._qmp('device_del', id=name)
        self._machine.qmp.wait_event('DEVICE_DELETED', device=name)
        if name in self._devices:
            # QEMU has deleted the character device with it.
            self._devices.pop(name).close()
        behind = ports[name] + '.'
        plugged['ports'] = {n: p for n, p in ports.items()
                            if n != name and not p.startswith(behind)}
        self._store(plugged)

    def unplug_together(self, *ports):
        """Pulls several at one and the same moment of the host."""
        with self._machine.paused():
            for port in ports:
                self.unplug(port)

    def count(self):
        """How many are plugged in."""
        return len(self._load()['ports'])

    def unplug_all(self):
        """Pulls whatever is plugged."""
        while ports := self._load()['ports']:
            self.unplug(next(iter(ports)))

    def _backend(self, kind, name):
        """Makes what QEMU needs behind a device; returns the option that names it.  It stays until
        the VM ends, for QEMU does not say when it is no longer in use."""
        if kind in ('storage', 'uas'):
            self._qmp('blockdev-add', driver='raw', file={
                'driver': 'file', 'filename': self._stick(name)}, **{'node-name': name})
            return {'drive': name} if kind == 'storage' else {}
        if kind == 'serial':
            self._qmp('chardev-add', id=name, backend={'type': 'null', 'data': {}})
            return {'chardev': name}
        if kind == 'net':
            self._qmp('netdev_add', type='user', id=name, restrict=True)
            return {'netdev': name}
        return {}

    def _stick(self, name):
        """A stick's contents: an ext4 file system labelled RIGSTICK."""
        path = f'{self._machine.folder}/{name}.img'
        with open(path, 'wb') as file:
            file.truncate(16 << 20)
        run('mke2fs', '-q', '-F', '-t', 'ext4', '-L', 'RIGSTICK', path)
        return path

    def _qmp(self, command, **arguments):
        return self._machine.qmp.execute(command, **arguments)

    @property
    def _file(self):
        return f'{self._machine.folder}/plugged.json'

    def _load(self):
        with contextlib.suppress(FileNotFoundError), open(self._file) as file:
            return json.load(file)
        return {'count': 0, 'ports': {}}

    def _store(self, plugged):
        with open(f'{self._file}.new', 'w') as file:
            json.dump(plugged, file)
        os.rename(f'{self._file}.new', self._file)
