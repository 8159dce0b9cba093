"""A guest: an inner QEMU in the host VM, the unit vm-<name>, its files in /run/vm/<name>/.

    qmp-sock      its QMP socket, for the tool under test alone
    qmp-test       another one, for the tests: QEMU serves one client at a time on each
    console.log   a Linux guest's console, with the host VM's CLOCK_MONOTONIC before each line
    trace.log     what QEMU did with host devices
    qemu.log      QEMU's messages
"""
import contextlib
import datetime
import re
import time

from .error import VmError
from .qtree import usb_devices
from .wait import wait_for

KINDS = ('linux', 'seabios')
# 15 ports of each speed: of its default 4, QEMU would give the last to a full-speed hub.
CONTROLLERS = ('qemu-xhci,id=xhci0,p2=15,p3=15', 'qemu-xhci,id=xhci1,p2=15,p3=15')
_TRACED = ('usb_host_open*', 'usb_host_close', 'usb_host_reset', 'usb_host_set_*',
           'usb_host_*_kernel', 'usb_host_*_interface', 'usb_port_*')
# What systemd says of a program that ended so; a test sends SIGKILL.
_CRASH = re.compile(r'status=\d+/(ILL|TRAP|ABRT|BUS|FPE|SEGV)')
_STALLED = 120          # s without a line on the console: a boot that hangs


class UsbDevices:
    """What a QEMU that answers qmp() has of USB devices."""

    def hmp(self, line):
        """A command to its QEMU's monitor; the text that it prints."""
        return self.qmp('human-monitor-command', **{'command-line': line})

    def usb(self):
        """The USB devices of its QEMU, attached or not: a list of UsbDevice."""
        return usb_devices(self.hmp('info qtree'))

    def attached(self):
        """{id: product} of the host's devices that its QEMU really has open."""
        return {device.id: device.name for device in self.usb()
                if device.driver == 'usb-host' and device.attached}

    def ids(self):
        """The ids of all its usb-host devices, attached or not."""
        return sorted(entry['name'] for entry in self.qmp('qom-list', path='/machine/peripheral')
                      if entry['type'] == 'child<usb-host>')


class Guest(UsbDevices):
    """One guest; several with different names run at once."""

    def __init__(self, host, name='windows'):
        self.name = name
        self.folder = f'/run/vm/{name}'
        self.qmp_sock = f'{self.folder}/qmp-sock'
        self.unit = f'vm-{name}'
        self._host = host
        self.broken = ''                # how its emulator failed: it crashed, or stands still

    # -- its life

    def start(self, kind='seabios', controllers=CONTROLLERS, extra=(), user=None, confined=False,
              within=()):
        """Starts it, anew if it runs.  kind: 'seabios' uses no USB device by itself and is there
        at once; 'linux' boots, which takes a minute.  extra: more arguments for QEMU.  user: who
        runs QEMU, root by default.  confined: its /dev is its own and has no /dev/bus, and its
        cgroup may open no device either.  within: words before QEMU's command, such as those that
        run it in a container."""
        self.stop()
        self._host.sh(f'rm -rf {self.folder}; mkdir -p {self.folder}')
        properties = ['-p', f'StandardError=file:{self.folder}/qemu.log']
        if user:
            self._host.sh(['chown', user, self.folder])
            properties += ['-p', f'User={user}']
        if confined:
            properties += ['-p', 'PrivateDevices=yes']
        # Root's alone; also on a TCG host: SVM.
        nested_kvm = (kind == 'linux' and not user and not confined and not within
                      and self._host.exec('[ -c /dev/kvm ]').rc == 0)
        command = self.command(kind, controllers, 'kvm' if nested_kvm else 'tcg')
        self._run_unit(self.unit, properties, [*within, *command, *extra])
        if kind == 'linux':
            self._run_unit(f'{self.unit}-console', ['-p', f'BindsTo={self.unit}.service'],
                           ['python3', '/opt/testvm/console.py', f'{self.folder}/serial',
                            f'{self.folder}/console.log'])
        wait_for(self._answers, 120, f"the guest {self.name}'s QMP socket")
        if kind == 'linux':
            self._wait_boot()

    def command(self, kind, controllers=CONTROLLERS, accelerator='tcg'):
        """QEMU's command line.

        With KVM Linux boots much faster, SeaBIOS does not; and where TCG emulates SVM for it, the
        host VM stood still now and then, or the guest was stopped with an internal error.
        """
        command = ['qemu-system-x86_64', '-name', self.name, '-machine', 'q35,usb=off',
                   '-nodefaults', '-no-user-config', '-display', 'none', '-msg', 'timestamp=on',
                   '-qmp', f'unix:{self.qmp_sock},server=on,wait=off',
                   '-qmp', f'unix:{self._rig_sock},server=on,wait=off',
                   '-D', f'{self.folder}/trace.log', '-accel', accelerator]
        for event in _TRACED:
            command += ['-trace', event]
        for controller in controllers:
            command += ['-device', controller]
        if kind == 'seabios':
            return [*command, '-m', '64']
        return [*command, '-m', '256',
                '-kernel', '/opt/testvm/guest/vmlinux', '-initrd', '/opt/testvm/guest/initrd',
                '-append', 'console=ttyS0 loglevel=7 mitigations=off nokaslr tsc=reliable '
                           'panic=-1 audit=0 no_timer_check',
                '-serial', f'unix:{self.folder}/serial,server=on,wait=on',
                '-serial', f'unix:{self._shell},server=on,wait=off']

    def stop(self):
        """Ends it in order, if it runs."""
        self._host.exec(['systemctl', 'stop', self.unit])

    def signal(self, name):
        """Sends its QEMU a signal: 'KILL' for a crash, 'STOP' and 'CONT' for one that hangs."""
        result = self._host.exec(['systemctl', 'kill', '-s', name, self.unit])
        # QEMU, the main process, may be gone before systemd has read the rest of its cgroup.
        if result.rc != 0 and 'to auxiliary processes' not in result.err:
            raise VmError(f'{name} to {self.unit}: {result.err.strip()}')

    def running(self):
        """Whether its QEMU runs."""
        return self._host.exec(['systemctl', 'is-active', '--quiet', self.unit]).rc == 0

    # -- its QEMU

    def qmp(self, command, **arguments):
        """A QMP command to its QEMU, over the test VM's own socket; the return value."""
        try:
            return self._host.agent.qmp(self._rig_sock, command, arguments)
        except VmError as error:
            raise VmError(f'{error}{self._how_it_ended()}') from error

    def pid(self):
        """The process id of its QEMU."""
        return self._host.sh(['systemctl', 'show', '--value', '-p', 'MainPID', self.unit]).strip()

    def trace(self):
        """What its QEMU did with host devices: [(CLOCK_MONOTONIC of the host, text)].

        A log that cannot be read is an error: a test that found nothing in it would pass."""
        shift = self._host.realtime_shift()
        return [(time - shift, text) for time, text in map(trace_line, self._log('trace.log'))]

    # -- its operating system (linux)

    def console(self):
        """The console: [(CLOCK_MONOTONIC of the host, line)]."""
        lines = [line.partition(' ') for line in self._log('console.log')]
        return [(float(stamp), text) for stamp, _, text in lines]

    def sh(self, line, timeout=120):
        """Runs a line in its shell (busybox): (exit status, text)."""
        try:
            return self._host.agent.guest_shell(self._shell, line, timeout)
        except VmError as error:
            console = '; '.join(text for _, text in self.console()[-5:])
            status = self._host.exec(['systemctl', 'is-active', self.unit]).out.strip()
            if 'timed out' in str(error) and status == 'active' and self._answers():
                self.broken = f'the guest {self.name} did not answer `{line}`, though its QEMU runs'
            raise VmError(f'{error}; QEMU is {status}, the console ends: {console}') from error

    def lsusb(self):
        """The products that it enumerated: {'1-1': 'QEMU USB Keyboard'}."""
        _, text = self.sh('for d in /sys/bus/usb/devices/*-*; do [ -e $d/product ] && '
                          'echo "${d##*/} $(cat $d/product)"; done')
        return dict(line.split(' ', 1) for line in text.splitlines())

    # -- how

    @property
    def _rig_sock(self):
        return f'{self.folder}/qmp-test'

    @property
    def _shell(self):
        return f'{self.folder}/shell'

    def _run_unit(self, unit, properties, command):
        self._host.sh(['systemd-run', '--quiet', f'--unit={unit}', '--collect', *properties,
                       *command])

    def _log(self, name):
        return self._host.exec(['cat', f'{self.folder}/{name}']).out.splitlines()

    def _how_it_ended(self):
        """What systemd and QEMU itself said when it ended; '' if it runs."""
        said = self._host.exec(
            f'systemctl is-active --quiet {self.unit} || '
            f'{{ journalctl --no-pager -o cat -n 3 UNIT={self.unit}.service; '
            f'tail -n 5 {self.folder}/qemu.log; }}').out
        text = f'its QEMU does not run: {"; ".join(said.splitlines())}'
        if _CRASH.search(said):
            self.broken = f'the guest {self.name} crashed: {text}'
        return f'; {text}' if said else ''

    def _answers(self):
        if not self.running():
            raise VmError(f'the guest {self.name} did not start{self._how_it_ended()}')
        with contextlib.suppress(VmError):
            status = self.qmp('query-status')
            # With -incoming it waits for its state.
            return status['running'] or status['status'] == 'inmigrate'
        return False

    def _wait_boot(self):
        """Waits until it is up; gives up when its console falls silent."""
        lines, since = -1, time.monotonic()
        while not any('GUEST-READY' in text for _, text in self.console()):
            count = len(self.console())
            if count > lines:
                lines, since = count, time.monotonic()
            if time.monotonic() - since > _STALLED:
                raise VmError(f'the guest {self.name} hangs: {self.console()[-1:]}')
            time.sleep(1)
        self.sh('true', timeout=300)


def trace_line(line):
    """(CLOCK_REALTIME, text) of a line of QEMU's trace log; raises VmError for another line.

    QEMU before 11 writes 1234@1700000000.123456:usb_host_close ..., later ones
    2026-01-01T00:00:00.123456Z usb_host_close ..., either with a process and thread ID or not."""
    head, _, text = line.partition(':')
    if '@' in head:
        with contextlib.suppress(ValueError):
            return float(head.partition('@')[2]), text.strip()
    for part in (line.partition(' '), line.partition('] ')[2].partition(' ')):
        with contextlib.suppress(ValueError):
            return datetime.datetime.fromisoformat(part[0]).timestamp(), part[2].strip()
    raise VmError(f'a line of QEMU\'s trace log has an unknown form: {line}')
