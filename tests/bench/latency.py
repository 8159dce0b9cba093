"""How long a device takes from the host's kernel into the guest's QEMU, in the end-to-end tests' VM."""
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f'{_HERE}/../e2e')

import product                                              # noqa: E402
from testvm import TestVm, VmError, build                        # noqa: E402
from usbdev import BulkOnlyDisk, Keyboard                   # noqa: E402
from usbdev.descriptors import HIGH, SUPER                  # noqa: E402

# QEMU's own are a full-speed keyboard and a super-speed stick; the others are of usbdev.
KINDS = (('kbd', '1'), ('storage', '2'), ('high-speed disk', '3'), ('super-speed keyboard', '4'))
DEVICES = {
    'high-speed disk': lambda: BulkOnlyDisk(HIGH),
    'super-speed keyboard': lambda: Keyboard(SUPER),
}
COUNTS = (1, 2, 8, 30)
# Where so many keyboards go: beside two hubs in ports of the second controller.
HUBS = ('xhci2:7', 'xhci2:8')
PORTS = ([str(port) for port in range(1, 13)] + [f'xhci2:{port}' for port in range(1, 7)] +
         [f'{hub}.{port}' for hub in HUBS for port in range(1, 7)])
# 15 ports of each speed each: enough for all of them without a hub of QEMU's.
CONTROLLERS = ('qemu-xhci,id=xhci0,p2=15,p3=15', 'qemu-xhci,id=xhci1,p2=15,p3=15')
# Seconds after a plug in which nobody looks.
UNDISTURBED = 1
SOCKET = '/run/vm/windows/qmp-sock'


class Way(NamedTuple):
    """One way of getting a device into the guest."""
    name: str
    settings: dict              # of hotplugger; None: it is not installed
    reference: tuple = ()       # arguments of the reference; none: it is not installed
    autoscan: bool = False      # QEMU looks itself
    alone: bool = False         # measured with one device only


WAYS = (
    Way('reference on `bind`', None, ('bind',)),
    Way('hotplugger, `delay: 0`', {'delay': 0, 'access': 'node'}),
    Way('reference on `add`, by descriptor', None, ('add', 'fd')),
    Way('hotplugger, `delay: 0`, `access: fd`', {'delay': 0, 'access': 'fd'}),
    Way('the same with `unbind_host_drivers: false`', {'delay': 0, 'access': 'fd', 'unbind_host_drivers': 'false'},
        alone=True),
    Way('hotplugger, `delay: 1`', {'delay': 1, 'access': 'node'}),
    Way("QEMU's own autoscan", None, autoscan=True),
)
CROWD_WAYS = tuple(way for way in WAYS if not way.alone)


class Plug(NamedTuple):
    """What was measured of devices that were plugged at once, in seconds."""
    opened: list                # of each, from the kernel's first `add` to the guest's QEMU opening it
    queue: float                # udevd busy, from that `add` to the last event it was done with
    started: list               # from the `add` to the reference's start
    round_trips: list           # the reference's device_add
    behind: float               # the last one open, from the last one's `add`


def build_reference():
    """Compiles the reference; its path."""
    path = f'{_HERE}/../../target/reference'
    os.makedirs(os.path.dirname(path), exist_ok=True)
    subprocess.run(['cc', '-O2', '-Wall', '-static', '-o', path, f'{_HERE}/reference.c'],
                   check=True)
    return path


class Bench:
    """A host with one guest, in which one way is in use."""

    def __init__(self, binary, way, ports):
        self.way = way
        self.vm = TestVm()
        self.vm.up(guest='none')
        self.guest = self.vm.guest()
        for hub in {port.partition('.')[0] for port in ports if '.' in port}:
            self.vm.plug('hub', hub)
        self.vm.settle()
        if way.settings is not None:
            config = product.config({'windows': ports}, timeout=60, **way.settings)
            product.install(self.vm, binary, config)
        if way.reference:
            self.vm.put(build_reference(), '/usr/bin/reference', 0o755)
            arguments = ' '.join((SOCKET, *way.reference))
            self.vm.rules(f'SUBSYSTEM=="usb", RUN+="/usr/bin/reference {arguments}"\n')
        extra, controllers = [], CONTROLLERS
        if way.autoscan:
            # What is looked for has a port of its own, whether it comes or not.
            wanted = [path for port in ports for path in product.devpaths(port)]
            controllers = [f'qemu-xhci,id=xhci{number},p2=15,p3=15'
                           for number in range(len(wanted) // 15 + 1)]
            for number, path in enumerate(wanted):
                bus, _, chain = path.rpartition('/')[2].partition('-')
                extra += ['-device', f'usb-host,bus=xhci{number // 15}.0,hostbus={bus},'
                                     f'hostport={chain}']
        self.guest.start('seabios', controllers=controllers, extra=extra)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.vm.down()

    def plug(self, *devices):
        """Plugs these (kind, port) at once and pulls them again; returns a Plug."""
        since = self.vm.monotonic()
        with self.vm.monitor() as monitor:
            with self.vm.machine.paused():
                for kind, port in devices:
                    if kind in DEVICES:
                        self.vm.plug_device(DEVICES[kind](), port)
                    else:
                        self.vm.plug(kind, port)
            # A look costs the host VM a process or two, which would be measured with the rest.
            time.sleep(UNDISTURBED)
            self.vm.wait_for(lambda: len(self._opened(since)) >= len(devices), 300,
                              f'{len(devices)} devices in the guest by {self.way.name}')
            self.vm.settle()
        events = [event for event in monitor.events if event.props.get('DEVTYPE') == 'usb_device']
        added = {}
        for event in events:
            if event.source == 'KERNEL' and event.action == 'add':
                added.setdefault(_name(event.devpath), event.time)
        first = min(added.values())
        opened = self._opened(since)
        done = max(event.time for event in monitor.events if event.source == 'UDEV')
        log = [line.split() for line in
               self.vm.exec('cat /run/reference.log; rm -f /run/reference.log').out.splitlines()]
        plug = Plug(
            opened=[at - first for at in opened],
            queue=done - first,
            started=[float(start) - added[name] for name, start, _, _ in log],
            round_trips=[float(end) - float(sent) for _, _, sent, end in log],
            behind=opened[-1] - max(added.values()))
        self.vm.unplug_together(*(port for _, port in devices))
        self.vm.settle()
        self.vm.wait_for(lambda: not self.guest.attached(), 120, 'the guest to lose them')
        return plug

    def _opened(self, since):
        """When the guest's QEMU opened each device, in order."""
        return sorted(time for time, text in self.guest.trace()
                      if 'usb_host_open_success' in text and time >= since)


def _name(devpath):
    return devpath.rpartition('/')[2]


def single(binary, plugs, say):
    """{(way, kind): [Plug]}: one device after the other; and {(way, kind): Plug}, the first plug of
    each kind, of which nothing is recorded and no driver loaded."""
    measured, first = {}, {}
    for way in WAYS:
        with Bench(binary, way, [port for _, port in KINDS]) as bench:
            for number in range(plugs + 1):
                for kind, port in KINDS:
                    plug = bench.plug((kind, port))
                    if number == 0:
                        first[way.name, kind] = plug
                    else:
                        measured.setdefault((way.name, kind), []).append(plug)
            for kind, _ in KINDS:
                times = [plug.opened[0] for plug in measured[way.name, kind]]
                say(f'{way.name}, {kind}: {statistics.median(times):.3f} s '
                    f'({min(times):.3f} to {max(times):.3f}), '
                    f'the first {first[way.name, kind].opened[0]:.3f} s')
    return measured, first


def together(binary, plugs, say):
    """{(way, count): [Plug]}: several devices at once."""
    measured = {}
    for way in CROWD_WAYS:
        for count in COUNTS:
            with Bench(binary, way, PORTS[:count] if count <= 18 else PORTS) as bench:
                bench.plug(('kbd', PORTS[0]))
                for _ in range(plugs):
                    try:
                        plug = bench.plug(*(('kbd', port) for port in PORTS[:count]))
                    except VmError as error:
                        say(f'{way.name}, {count} at once: {error}')
                        break
                    measured.setdefault((way.name, count), []).append(plug)
                    say(f'{way.name}, {count} at once: the last after {plug.opened[-1]:.2f} s, '
                        f'udevd busy {plug.queue:.2f} s')
    return measured


def prepare():
    """Builds the host's image, if it is not there."""
    build('none', 'seabios')


def main():
    """By hand: latency.py BINARY PLUGS, for a look."""
    prepare()
    begin = time.monotonic()
    single(os.path.abspath(sys.argv[1]), int(sys.argv[2]), print)
    together(os.path.abspath(sys.argv[1]), 1, print)
    print(f'{time.monotonic() - begin:.0f} s')


if __name__ == '__main__':
    main()
