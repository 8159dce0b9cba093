"""The host VM: a Machine with ports, an agent in it, and what tests ask of its Debian."""
import contextlib
import os
import shlex
import stat
import time

from .agent import Agent
from .domain import Domain
from .error import VmError
from .guest import Guest
from .machine import Machine
from .monitor import Monitor
from .ports import Ports
from .wait import wait_for


class Host:
    """One host VM; its files are in folder."""

    wait_for = staticmethod(wait_for)

    def __init__(self, folder):
        self.machine = Machine(folder)
        self._ports = Ports(self.machine)
        self._agent = None
        self._shift = None

    # -- its life

    def boot(self, image, disk, **options):
        """Starts it and waits until it is up; options are Machine.start's."""
        self.machine.start(image, disk, **options)
        self.machine.wait_for(self._answers, 'the host VM to come up')
        self.agent.set_time(time.time())

    def down(self):
        """Ends it; nothing of it stays."""
        self._agent = self._shift = None
        self.machine.stop()

    def died(self, patience=60):
        """How it died of itself (Machine.died), or that it stands still: it does not answer for
        that many seconds, though its QEMU runs.  Else ''."""
        died = self.machine.died()
        if died or not self.machine.alive():
            return died
        try:
            self.agent.clocks(patience)
            return ''
        except VmError as error:
            return f"the host VM's QEMU runs, but {error}"

    # -- its ports

    def plug(self, kind, port, **options):
        """Plugs a device; see ports.py for kinds and ports.  Returns its id."""
        return self._ports.plug(kind, port, **options)

    def plug_device(self, device, port):
        """Plugs a device of usbdev, which is a program.  Returns its id."""
        return self._ports.plug_device(device, port)

    def plug_together(self, *devices):
        """Plugs several (kind, port) at one and the same moment."""
        return self._ports.plug_together(*devices)

    def unplug(self, port):
        """Pulls the device in that port, with all that is behind it."""
        self._ports.unplug(port)

    def unplug_together(self, *ports):
        """Pulls several at one and the same moment."""
        self._ports.unplug_together(*ports)

    def unplug_all(self):
        """Pulls whatever is plugged."""
        self._ports.unplug_all()

    # -- what runs in it

    @property
    def agent(self):
        """The agent in it."""
        if not self._agent:
            self._agent = Agent(self.machine.agent_port())
        return self._agent

    def exec(self, command, stdin=b'', timeout=120, env=None):
        """Runs a command: a string goes to bash, a list runs as it is.  Returns a Result: rc,
        out, err, timed_out, seconds."""
        return self.agent.exec(command, stdin, timeout, env)

    def sh(self, command, **options):
        """exec of what must succeed; returns its standard output."""
        result = self.exec(command, **options)
        if result.rc != 0:
            text = command if isinstance(command, str) else shlex.join(command)
            raise VmError(f'`{text}` in the host VM: exit status {result.rc}: '
                           f'{result.err.strip() or result.out.strip()}')
        return result.out

    def put(self, source, path, mode=None):
        """Copies a file, or bytes, into it."""
        if not isinstance(source, bytes):
            mode = mode or stat.S_IMODE(os.stat(source).st_mode)
            with open(source, 'rb') as file:
                source = file.read()
        self.agent.put(source, path, mode or 0o644)

    def get(self, path):
        """The bytes of a file in it."""
        return self.agent.get(path)

    def monotonic(self):
        """Its CLOCK_MONOTONIC, which uevents, journal and guest logs have too."""
        return self.agent.clocks()['monotonic']

    def realtime_shift(self):
        """Its wall clock minus its CLOCK_MONOTONIC: the same each time, as nobody sets it."""
        if self._shift is None:
            clocks = self.agent.clocks()
            self._shift = clocks['realtime'] - clocks['monotonic']
        return self._shift

    def guest(self, name='windows'):
        """The guest of that name, running or not."""
        return Guest(self, name)

    def domain(self, name='windows'):
        """The domain of libvirt's of that name, in a host VM of the kind 'libvirt'."""
        return Domain(self, name)

    # -- its udev and its journal

    def rules(self, text, name='99-test.rules'):
        """Installs udev rules; without text, removes them."""
        path = f'/etc/udev/rules.d/{name}'
        if text:
            self.put(text.encode(), path)
        else:
            self.sh(['rm', '-f', path])
        self.sh(['udevadm', 'control', '--reload'])

    def settle(self, timeout=60):
        """Waits until the kernel knows what is plugged in and udevd has handled all events of it."""
        self.wait_for(lambda: self._usb_devices() == self._ports.count(), timeout,
                      'the kernel to see what is plugged in')
        # Reading it waits for the device's lock, which the kernel holds until its bind is sent.
        self.exec('cat /sys/bus/usb/devices/*/bConfigurationValue')
        self.exec(['udevadm', 'settle', f'--timeout={timeout}'], timeout=timeout + 30)

    def monitor(self, subsystems=('usb',)):
        """A Monitor, to be entered: records uevents."""
        return Monitor(self, subsystems)

    def journal(self, *arguments):
        """journalctl's text; the time of each line is CLOCK_MONOTONIC."""
        return self.sh(['journalctl', '--no-pager', '--quiet', '-o', 'short-monotonic',
                        *arguments])

    def drivers(self):
        """The driver of each USB interface but the root hubs': {'1-1:1.0': 'usbhid'}."""
        links = self.sh('cd /sys/bus/usb/devices; for i in *:*; do '
                        'echo "$i $(basename "$(readlink $i/driver)")"; done')
        return {name: driver for name, _, driver in
                (line.partition(' ') for line in links.splitlines())
                if not name.endswith('-0:1.0')}

    def _usb_devices(self):
        """How many devices there are but the root hubs."""
        return int(self.exec('cd /sys/bus/usb/devices; ls | grep -c "^[0-9]*-[^:]*$"').out)

    def _answers(self):
        with contextlib.suppress(VmError):
            return self.agent.clocks(timeout=5)
        return None
