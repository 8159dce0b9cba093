"""A fault campaign: random sequences of what happens to a host, and what must hold after each.

A sequence is a list of steps, each a tuple of a name and arguments, that means the same on any fresh
host: so it can be printed, replayed and shortened.
"""
import contextlib
import time

import product
from testvm import TestVm, VmError
from usbdev import BulkOnlyDisk, Keyboard, UasDisk, Vendor
from usbdev.descriptors import HIGH, LOW, SUPER

KINDS_BEHIND = ('kbd', 'mouse', 'tablet', 'audio', 'serial')
# Devices of usbdev, of the speeds that QEMU's own do not have.
DEVICES = {
    'low-speed keyboard': lambda: Keyboard(LOW),
    'super-speed keyboard': lambda: Keyboard(SUPER),
    'bulk-only disk': lambda: BulkOnlyDisk(HIGH),
    'UAS disk': lambda: UasDisk(SUPER),
    'vendor device': lambda: Vendor(HIGH, interfaces=4),
}
# Behind QEMU's hub, which is full speed, a disk of the host VM takes too long.
KINDS = (*KINDS_BEHIND, 'storage', *DEVICES)
# Port 4 is listed by both guests: the first that runs gets what is plugged in.  Hubs go into 7 and 8.
PORTS = {'windows': ['1', '2', '3', '4', '7'], 'linux': ['4', '5', '6', '8']}
PLAIN = ('1', '2', '3', '4', '5', '6')
HUBS = ('7', '8')
BEHIND = (1, 2, 3)
SEQUENCE = 40           # steps
# How long a host that is emulated may take until what is to hold holds.
PATIENCE = 90           # s
# How long one may not answer at all: a guest's QEMU resets a device behind a hub that was just
# pulled, and the emulated hub lets the kernel run into one timeout after the other; on a busy machine
# the emulated host as a whole stands still for a minute now and then.
STUCK = 400             # s

_WEIGHTS = {
    'plug': 30, 'unplug': 20, 'replace': 8, 'plug_hub': 4, 'pull_hub': 4, 'plug_behind': 12,
    'kill_guest': 2, 'restart_guest': 2, 'pause_guest': 3, 'go_on': 4, 'reset_guest': 2,
    'restart_udevd': 2, 'trigger': 4, 'forget': 2, 'break_config': 2, 'change_delay': 3,
    'sync': 4, 'fill_tmp': 2, 'kill_hotplugger': 5, 'move': 3, 'wait': 8,
    'stop_qemu': 3, 'claim': 3, 'mount': 3, 'take_state': 2,
}
# After these an event may have found nobody to handle it, or no guest: `sync` is what mends it.
_LOSES = {'kill_guest', 'restart_guest', 'restart_udevd', 'break_config', 'kill_hotplugger',
          'pause_guest', 'stop_qemu', 'mount', 'take_state', 'trigger'}


def sequence(dice):
    """A random sequence; dice is a random.Random."""
    plugged, hubs, steps = {}, set(), []
    names = list(_WEIGHTS)
    while len(steps) < SEQUENCE:
        name, = dice.choices(names, [_WEIGHTS[name] for name in names])
        step = _arguments(name, dice, plugged, hubs)
        if step is not None:
            steps.append((name, *step))
    return steps


def _arguments(name, dice, plugged, hubs):
    """The arguments of a step; None if it makes no sense now."""
    if name == 'plug':
        free = [port for port in PLAIN if port not in plugged]
        return free and _plug(dice, plugged, dice.choice(free)) or None
    if name in ('unplug', 'replace', 'move'):
        if not plugged:
            return None
        port = dice.choice(sorted(plugged))
        if name == 'replace':
            return _plug(dice, plugged, port)
        if name == 'unplug':
            del plugged[port]
        return (port,)
    if name == 'plug_hub':
        free = [hub for hub in HUBS if hub not in hubs]
        if not free:
            return None
        hubs.add(free[0])
        return (free[0],)
    if name == 'pull_hub':
        if not hubs:
            return None
        hub = dice.choice(sorted(hubs))
        hubs.discard(hub)
        for port in [port for port in plugged if port.startswith(f'{hub}.')]:
            del plugged[port]
        return (hub,)
    if name == 'plug_behind':
        free = [f'{hub}.{port}' for hub in sorted(hubs) for port in BEHIND
                if f'{hub}.{port}' not in plugged]
        return free and _plug(dice, plugged, dice.choice(free)) or None
    if name.endswith('_guest') or name == 'go_on':
        return (dice.choice(sorted(PORTS)),)
    if name == 'stop_qemu':
        return (dice.choice(sorted(PORTS)), dice.choice((2, 12)))
    if name in ('wait', 'kill_hotplugger'):
        return (round(dice.uniform(0, 1.5), 2),)
    if name == 'trigger':
        return (('add', 'bind', 'change', 'remove')[len(plugged) % 4],)
    if name == 'change_delay':
        return (dice.choice((0, 0.3, 1)),)
    return ()


def _plug(dice, plugged, port):
    plugged[port] = dice.choice(KINDS_BEHIND if '.' in port else KINDS)
    return port, plugged[port]


# Claims interface 0 of a device that it can open, and keeps it.
CLAIM = '''
import fcntl, os, struct, sys, time
node = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.ioctl(node, 0xc0105512, struct.pack('@iiP', 0, 0x5516, 0))
except OSError:
    pass
fcntl.ioctl(node, 0x8004550f, struct.pack('@I', 0))
time.sleep(4)
'''


class Broken(Exception):
    """Something that must hold does not."""


class Campaign:
    """A host with two guests, to which sequences happen."""

    def __init__(self, binary):
        self.binary = binary
        self.counts = {}
        self.unanswered = 0
        self.vm = None

    def fresh(self):
        """Begins with a fresh host."""
        self.close()
        self.vm = TestVm()
        self.vm.up(guest='none')
        # Small, so that it can be filled.
        self.vm.sh('mount -t tmpfs -o size=128k,mode=1777 tmpfs /tmp')
        self.delay, self.unanswered = 0, 0
        product.install(self.vm, self.binary, self._config())
        self.guests = {name: self.vm.guest(name) for name in PORTS}
        for guest in self.guests.values():
            guest.start('seabios')

    def close(self):
        """Ends the host."""
        if self.vm:
            self.vm.down()
            self.vm = None

    def play(self, steps):
        """Plays a sequence, then looks whether all is as it must be; raises Broken."""
        for name, *arguments in steps:
            # What a shorter sequence no longer makes sense of is left out.
            with contextlib.suppress(VmError):
                getattr(self, f'_{name}')(*arguments)
            self.counts[name] = self.counts.get(name, 0) + 1
        self._settle(bool(_LOSES & {step[0] for step in steps}))
        self._check()

    def evidence(self):
        """What the host knows of how it came."""
        parts = [self.vm.journal('-t', 'hotplugger')[-6000:], self.vm.journal('-k', '-n', '30')]
        # One that does not answer waits for something.
        parts.append(self.vm.exec(
            'for p in $(pgrep -x "qemu-system-x86|hotplugger"); do tr "\\0" " " < /proc/$p/cmdline | '
            'cut -c1-60; for t in /proc/$p/task/*; do grep -h "^State" $t/status; cat $t/comm '
            '$t/syscall $t/stack; done; done').out)
        parts += [self.vm.exec(f'systemctl status --no-pager {guest.unit}; '
                                f'tail -5 {guest.folder}/qemu.log').out
                  for guest in self.guests.values()]
        parts += [f'{name}: {time:.3f} {text}' for name, guest in self.guests.items()
                  for time, text in guest.trace()[-30:]]
        return '\n'.join(parts)

    # -- the steps

    def _plug(self, port, kind):
        if kind in DEVICES:
            self.vm.plug_device(DEVICES[kind](), port)
        else:
            self.vm.plug(kind, port)

    _plug_behind = _plug

    def _unplug(self, port):
        self.vm.unplug(port)

    def _replace(self, port, kind):
        with self.vm.machine.paused():
            self.vm.unplug(port)
            self._plug(port, kind)

    def _plug_hub(self, hub):
        self.vm.plug('hub', hub)

    _pull_hub = _unplug

    def _kill_guest(self, name):
        self.guests[name].signal('KILL')

    def _restart_guest(self, name):
        self.guests[name].start('seabios')

    def _pause_guest(self, name):
        self.guests[name].qmp('stop')

    def _go_on(self, name):
        self.guests[name].qmp('cont')

    def _reset_guest(self, name):
        self.guests[name].qmp('system_reset')

    def _restart_udevd(self):
        self.vm.sh('systemctl restart systemd-udevd')

    def _trigger(self, action):
        self.vm.sh(f'udevadm trigger --subsystem-match=usb --action={action}')

    def _forget(self):
        self.vm.sh('rm -rf /tmp/hotplugger')

    def _break_config(self):
        self.vm.put(b'virtual_machines: [\n', '/etc/hotplugger/config.yaml', 0o644)
        time.sleep(0.3)
        self._write_config()

    def _change_delay(self, delay):
        self.delay = delay
        self._write_config()

    def _sync(self):
        self.vm.sh('hotplugger sync >/dev/null 2>&1 &')

    def _fill_tmp(self):
        self.vm.exec('cat /dev/zero > /tmp/full 2>/dev/null; sleep 0.3; rm -f /tmp/full')

    def _kill_hotplugger(self, after):
        self.vm.sh(f'(sleep {after}; pkill -9 -x hotplugger) >/dev/null 2>&1 &')

    def _move(self, port):
        self.vm.exec(f'hotplugger move 1-{port}')

    def _stop_qemu(self, name, seconds):
        """QEMU does not reply for a while, which may be longer than a session."""
        guest = self.guests[name]
        guest.signal('STOP')
        self.vm.sh(f'(sleep {seconds}; systemctl kill -s CONT {guest.unit}) >/dev/null 2>&1 &')

    def _claim(self):
        """A program claims what it finds, as usbmuxd and pcscd do."""
        self.vm.put(CLAIM.encode(), '/run/claim.py')
        self.vm.exec('cd /sys/bus/usb/devices; for d in *-*; do case $d in *:*) continue;; esac; '
                     '[ "$(cat $d/bDeviceClass)" = 09 ] || timeout 5 python3 /run/claim.py '
                     '/dev/bus/usb/$(printf %03d/%03d $(cat $d/busnum $d/devnum)) '
                     '>/dev/null 2>&1 & done')

    def _mount(self):
        """The host mounts the disks that it has, one of them in a namespace of its own."""
        self.vm.exec('mkdir -p /run/mnt; for disk in /dev/sd?; do mke2fs -q -F $disk && '
                     'mount $disk /run/mnt; done; '
                     'timeout 5 unshare -m sh -c "mount /dev/sda /mnt && sleep 4" &')

    def _take_state(self):
        """Another user makes the state directory."""
        self.vm.exec('rm -rf /tmp/hotplugger; setpriv --reuid=65534 --clear-groups '
                     'sh -c "mkdir -m 777 /tmp/hotplugger; echo x > /tmp/hotplugger/records.lock"')

    def _wait(self, seconds):
        time.sleep(seconds)

    # -- what must hold

    def _settle(self, lost):
        """Lets everything come to rest, both guests running."""
        self.vm.exec('while pidwait -f "[p]kill -9 -x hotplugger"; do :; done; '
                     'while pidwait -f "[k]ill -s CONT|[c]laim.py|[u]nshare -m"; do :; done; '
                     'umount -q -A /run/mnt; while umount -q /run/mnt; do :; done')
        for guest in self.guests.values():
            if self._answered(lambda: self._runs_again(guest)):
                lost = True
        self._write_config()
        self._answered(lambda: self.vm.exec(
            'while pidwait -x hotplugger; do :; done; '
            'udevadm settle --timeout=120', timeout=200))
        # An event that gave its QEMU up has said so; `sync` is what mends that.
        unanswered = self.vm.journal('-t', 'hotplugger').count('no reply within')
        lost, self.unanswered = lost or unanswered > self.unanswered, unanswered
        if lost:
            # A made-up `remove` has libusb forget the device, and QEMU closes it the next time that it
            # looks, which it does each two seconds while the guest runs (usb_host_auto_check).
            time.sleep(3)
            # What the start of a guest runs, and a person whose hotplugger was killed.
            if self.vm.exec('hotplugger sync').rc != 0:
                # The kernel was still busy with a device that does not answer: the others were plugged in
                # and pulled meanwhile, and QEMU waited for it as well.
                self.vm.exec('udevadm settle --timeout=120; while pidwait -x hotplugger; do :; done',
                             timeout=200)
                self._answered(self._sync_again)
        time.sleep(1)

    def _sync_again(self):
        ended = self.vm.exec('hotplugger sync')
        said = ended.out + ended.err
        if ended.rc != 0:
            # A QEMU that still waits for the kernel is asked again.
            raise (VmError if 'no reply within' in said else Broken)(f'sync fails: {said}')

    @staticmethod
    def _runs_again(guest):
        """Has the guest go on; whether it had to be started.  One that was killed may end only after
        the kernel's reset of a device, which its QEMU waits for."""
        ended = not guest.running()
        if ended:
            guest.start('seabios')
        guest.qmp('cont')
        return ended

    @staticmethod
    def _answered(ask):
        """What ask() returns, once whom it asks answers."""
        end = time.monotonic() + STUCK
        while True:
            try:
                return ask()
            except VmError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)

    def _check(self):
        """Looks until all holds, or has not for too long."""
        end = time.monotonic() + PATIENCE
        while wrong := self._answered(self._wrong):
            if time.monotonic() > end:
                raise Broken('; '.join(wrong))
            time.sleep(1)

    def _wrong(self):
        """What is not as it must be."""
        wrong = []
        present = self._present()
        seen = {}
        for name, guest in self.guests.items():
            attached, ids = set(guest.attached()), set(guest.ids())
            wrong += [f'{name} has {one} without a device' for one in sorted(ids - attached)]
            for one in attached:
                seen.setdefault(one, []).append(name)
        for one, port in present.items():
            owners = [name for name in PORTS if port.split('.')[0] in PORTS[name]]
            holders = seen.pop(one, [])
            if len(holders) != 1 or holders[0] not in owners:
                wrong.append(f'{one} is in {holders or "no guest"}, not in one of {owners}')
        wrong += [f'{one} is in {names} and not plugged' for one, names in seen.items()]
        expected = {one.split('-', 1)[1].rpartition('-')[0] for one in present}
        kept = self.vm.exec('cd /tmp/hotplugger /run/hotplugger 2>/dev/null; '
                             'ls | sed -n "s/^port-\\(.*\\)\\.json$/\\1/p"').out.split()
        wrong += [f'the state of {port}, which is empty, is kept'
                  for port in sorted(set(kept) - expected)]
        if self.vm.exec('udevadm settle --timeout=1').rc != 0:
            wrong.append("udev's queue is not empty")
        if self.vm.exec('pgrep -x hotplugger').rc == 0:
            wrong.append('a hotplugger still runs')
        return wrong

    def _present(self):
        """{id: port} of what is plugged in and no hub."""
        # Without a process for each: they are dear where all is emulated.
        told = self.vm.sh('cd /sys/bus/usb/devices; for d in *-*; do case $d in *:*) ;; *) '
                           'unset n c; { read -r n < $d/devnum; read -r c < $d/bDeviceClass; } '
                           '2>/dev/null; echo $d $n $c;; esac; done')
        devices = [line.split() for line in told.splitlines()]
        return {f'hotplugger-{name}-{rest[0]}': name.partition('-')[2]
                for name, *rest in devices if len(rest) == 2 and rest[1] != '09'}

    def _config(self):
        return product.config(PORTS, timeout=8, delay=self.delay)

    def _write_config(self):
        self.vm.put(self._config().encode(), '/etc/hotplugger/config.yaml.new', 0o644)
        self.vm.sh('mv /etc/hotplugger/config.yaml.new /etc/hotplugger/config.yaml')
