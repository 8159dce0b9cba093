"""What goes wrong around hotplugger costs one line and never udevd."""
from product import devpaths
from test_attach import AttachCase

# Accepts and never greets, as a QEMU that is stuck.
STUCK = '''\
import socket, time
server = socket.socket(socket.AF_UNIX)
server.bind("/run/vm/windows/qmp-sock")
server.listen(5)
clients = []
while True:
    clients.append(server.accept())
'''


class FaultsTest(AttachCase):
    """No guest runs unless a test starts one."""

    guest_kind = 'none'

    def plug_and_settle(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: '1-1:1.0' in self.vm.drivers(), 60)
        self.vm.settle()

    def lines(self):
        """hotplugger's lines in the journal."""
        return self.vm.journal('-t', 'hotplugger').splitlines()

    def exits(self):
        """What udevd said of failed programs."""
        return self.vm.exec('journalctl -u systemd-udevd | grep "exit code"').out

    def test_no_vm(self):
        self.install(delay=0)
        self.plug_and_settle()
        line, = self.lines()
        self.assertIn('windows: port 1-1, QEMU USB Keyboard (0627:0001): stays with the host', line)
        self.assertIn('not running: there is no socket /run/vm/windows/qmp-sock', line)
        self.assertEqual(self.exits(), '')
        self.assertEqual(self.vm.drivers(), {'1-1:1.0': 'usbhid'})

    def test_a_socket_that_a_killed_vm_left(self):
        self.guest.start('seabios')
        self.guest.signal('KILL')
        self.vm.wait_for(lambda: not self.guest.running())
        self.install(delay=0)
        self.plug_and_settle()
        line, = self.lines()
        self.assertIn('no process listens at /run/vm/windows/qmp-sock', line)
        self.assertEqual(self.exits(), '')

    def test_a_stuck_vm_costs_the_deadline_and_no_more(self):
        self.install(delay=0, timeout=2)
        self.vm.sh('mkdir -p /run/vm/windows')
        self.vm.put(STUCK.encode(), '/run/stuck.py')
        self.vm.sh('systemd-run --quiet --unit=stuck python3 /run/stuck.py')
        self.vm.wait_for(lambda: self.vm.exec('test -S /run/vm/windows/qmp-sock').rc == 0)
        self.plug_and_settle()
        line, = self.lines()
        self.assertIn("no reply within 2 s: waiting for QEMU's greeting", line)
        self.assertIn("failed with exit code 1", self.exits())
        with self.vm.monitor() as monitor:
            self.vm.unplug('1')
            monitor.wait(lambda event: event.source == 'UDEV' and event.action == 'remove'
                         and event.devpath == devpaths('1')[0])
        self.assertEqual(len(self.lines()), 2)
        self.assertEqual(self.state_files(), [])
        self.assertEqual(self.vm.exec('udevadm settle --timeout=1').rc, 0)

    def test_a_broken_config_is_told_with_its_line(self):
        self.install(delay=0)
        self.vm.sh('echo "    dellay: 1" >> /etc/hotplugger/config.yaml; '
                    'sed -i "s/^    ports:/    prots:/" /etc/hotplugger/config.yaml')
        self.plug_and_settle()
        for line in self.lines():
            self.assertIn('/etc/hotplugger/config.yaml:6:5: ', line)
            self.assertIn('prots', line)

    def test_the_rule_is_sound(self):
        self.install(delay=0)
        if self.vm.exec('udevadm verify --help').rc == 0:
            self.vm.sh('udevadm verify /etc/udev/rules.d/99-hotplugger.rules')
        self.vm.plug('kbd', '1')
        self.vm.plug('hub', '2')
        self.vm.wait_for(lambda: {'1-1:1.0', '1-2:1.0'} <= set(self.vm.drivers()), 60)
        # What udev would run, by its own word.
        told = [self.vm.exec(f'udevadm test --action=bind /sys/bus/usb/devices/{name} 2>&1 '
                              '| grep -q "/usr/bin/hotplugger udev"').rc == 0
                for name in ('1-1', '1-2', '1-1:1.0')]
        self.assertEqual(told, [True, False, False])
