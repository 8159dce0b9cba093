"""How QEMU gets at a device: by its node, or by a descriptor that it is handed."""
import os

import product
from test_attach import AttachCase, device_id

# A cycle takes seconds under TCG.
CYCLES = int(os.environ.get('HOTPLUGGER_TEST_CYCLES', '12'))
ROOTS_ALONE = 'SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device", MODE="0600"\n'
# Listens as QEMU does, agrees to all that comes, and tells of each descriptor that it gets.
GREEDY = r'''
import array, json, os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(5)
while True:
    client, _ = listener.accept()
    client.sendall(b'{"QMP": {}}\r\n')
    text = b''
    while True:
        data, control, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(64))
        for level, kind, value in control:
            if kind == socket.SCM_RIGHTS:
                for fd in array.array('i', value[:len(value) // 4 * 4]):
                    print('got', os.readlink(f'/proc/self/fd/{fd}'), flush=True)
        if not data:
            break
        text += data
        while b'\n' in text:
            line, _, text = text.partition(b'\n')
            command = json.loads(line)
            print('said', command['execute'], flush=True)
            answer = {'qom-list': [], 'query-fdsets': [], 'qom-get': True,
                      'human-monitor-command': ''}.get(command['execute'], {})
            reply = {'return': answer, 'id': command['id']}
            client.sendall(json.dumps(reply).encode() + b'\r\n')
'''


class AccessCase(AttachCase):
    """A QEMU that may open no device of the host."""

    guest_kind = 'none'

    def start_confined(self, **options):
        """As libvirt has it, and stricter: an unprivileged user, a /dev without USB devices, a
        cgroup without devices, and nodes that are root's alone."""
        self.vm.rules(ROOTS_ALONE, '98-roots-alone.rules')
        self.guest.start('seabios', user='nobody', confined=True, **options)
        inside = ['nsenter', '-t', self.guest.pid(), '-m', 'ls', '/dev/bus']
        self.assertNotEqual(self.vm.exec(inside).rc, 0)

    def lines(self):
        """All lines of hotplugger's."""
        return self.vm.journal('-t', 'hotplugger').splitlines()

    def line(self, text):
        """Waits for hotplugger's line with that text."""
        return self.vm.wait_for(lambda: next((line for line in self.lines() if text in line), None),
                                 120, f'a line with: {text}')

    def in_sets(self):
        """How many descriptors are in QEMU's sets."""
        return sum(len(entry['fds']) for entry in self.guest.qmp('query-fdsets'))

    def descriptors(self):
        """How many descriptors QEMU has open."""
        return len(self.vm.sh(['ls', f'/proc/{self.guest.pid()}/fd']).split())


class ConfinedTest(AccessCase):
    """A QEMU without rights to any device."""

    def plug_three(self):
        """Plugs what is fast, slow and isochronous, and sees that it is all in the guest."""
        self.vm.plug_together(('kbd', '1'), ('storage', '2'), ('audio', '3'))
        self.wait_attached(('kbd', '1'), ('storage', '2'), ('audio', '3'))
        # The root hubs, 001, were there before the rule.
        modes = self.vm.sh('stat -c %a/%U /dev/bus/usb/00[12]/00[2-9]').split()
        self.assertEqual(set(modes), {'600/root'})
        speeds = {device.name: device.speed for device in self.guest.usb()}
        self.assertEqual(speeds['QEMU USB HARDDRIVE'], '5000')
        self.assertEqual(self.in_sets(), 0)
        self.vm.unplug_together('1', '2', '3')
        self.wait_gone()
        for port in ('1-1', '2-2', '1-3'):
            self.assertIn('via file descriptor', self.line(f'port {port}, '))
        self.assertEqual(len(self.lines()), 6, 'one line for each plug, and each pull')

    def test_auto_attaches_all_kinds(self):
        self.start_confined()
        self.install({'windows': ['1', '2', '3']}, delay=0)
        self.plug_three()

    def test_fd_attaches_all_kinds(self):
        self.start_confined()
        self.install({'windows': ['1', '2', '3']}, delay=0, access='fd', user='nobody')
        self.plug_three()

    def test_fd_waits_for_the_delay(self):
        self.start_confined()
        self.install(delay=1, access='fd')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))

    def test_node_says_what_is_wrong(self):
        self.start_confined()
        self.install(delay=0, access='node')
        self.vm.plug('kbd', '1')
        line = self.line('not attached: ')
        self.assertRegex(line, 'QEMU (does not list the device; check that QEMU\'s /dev has|may not open) '
                               '/dev/bus/usb/001/')
        self.assertEqual(self.guest.ids(), [])

    def test_a_paused_guest_has_it_at_once(self):
        self.start_confined()
        self.install(delay=0, access='fd')
        self.guest.qmp('stop')
        for _ in range(2):
            self.vm.plug('kbd', '1')
            self.wait_attached(('kbd', '1'))
            self.vm.unplug('1')
            self.wait_gone()
        self.guest.qmp('cont')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        self.assertEqual(self.in_sets(), 0)

    def test_a_device_comes_again_under_another_number(self):
        self.start_confined()
        self.install(delay=0, access='fd')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.sh('echo 0 > /sys/bus/usb/devices/1-1/authorized; sleep 1;'
                    'echo 1 > /sys/bus/usb/devices/1-1/authorized')
        before = self.devnum('kbd', '1')
        for _ in range(3):
            self.vm.unplug('1')
            self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.devnum('kbd', '1') != before, 60)
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        self.assertEqual(self.guest.ids(), [device_id('kbd', '1', self.devnum('kbd', '1'))])


class EarlyTest(AccessCase):
    """With a descriptor and no delay, the first event attaches."""

    guest_kind = 'linux'

    def test_it_is_open_before_udev_is_done_with_its_add(self):
        self.install(delay=0, access='fd')
        for kind, devpath in (('kbd', 'usb1/1-1'), ('storage', 'usb2/2-1'), ('kbd', 'usb1/1-1')):
            start = self.vm.monotonic()
            with self.vm.monitor() as monitor:
                self.vm.plug(kind, '1')
                self.wait_attached((kind, '1'))
                monitor.wait(lambda event: (event.source, event.action) == ('UDEV', 'bind')
                             and event.devpath.endswith(devpath))
            added = next(event.time for event in monitor.events if event.source == 'UDEV'
                         and event.action == 'add' and event.devpath.endswith(devpath))
            opened = [time for time, text in self.guest.trace()
                      if text.startswith('usb_host_open_success') and time > start]
            self.assertEqual(len(opened), 1)
            self.assertLess(opened[0], added)
            self.vm.unplug('1')
            self.wait_gone()
        self.assertEqual(len(self.lines()), 6)
        kernel = self.vm.sh('dmesg')
        self.assertNotIn('I/O error', kernel)
        self.assertNotIn('device offline error', kernel)

    def test_what_is_excluded_by_its_interfaces_is_known_that_early(self):
        self.install(delay=0, access='fd', exclude='[class: storage]')
        self.vm.plug('storage', '1')
        self.line('it stays with the host; the config excludes')
        self.vm.settle()
        self.assertEqual(self.vm.drivers(), {'2-1:1.0': 'usb-storage'})
        self.assertEqual(self.guest.ids(), [])
        self.assertEqual(len(self.lines()), 1)

    def test_a_guest_that_is_off_costs_one_line(self):
        self.guest.stop()
        self.install(delay=0, access='fd')
        self.vm.plug('kbd', '1')
        self.line('the VM is not running')
        self.vm.settle()
        self.assertEqual(len(self.lines()), 1)


class LeakTest(AccessCase):
    """Nothing is left behind, however often."""

    def test_many_cycles_leave_no_descriptor(self):
        self.start_confined()
        self.install(delay=0, access='fd')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        before = self.descriptors()
        done = self.vm.sh(f'for i in $(seq {CYCLES}); do '
                           'hotplugger detach 1-1 && hotplugger attach 1-1 || exit; done | wc -l',
                           timeout=120 + 10 * CYCLES)
        self.assertEqual(int(done), 2 * CYCLES)
        self.wait_attached(('kbd', '1'))
        self.assertEqual(self.descriptors(), before)
        self.assertEqual(self.in_sets(), 0)
        self.assertLessEqual(len(self.guest.qmp('query-fdsets')), 1)


class PeerTest(AccessCase):
    """A process at the socket gets commands and file descriptors only if it is the expected user's."""

    def listen(self):
        """A greedy partner, user nobody, at the guest's socket."""
        self.vm.put(GREEDY.encode(), '/opt/greedy.py')
        self.vm.sh(f'mkdir -p {self.guest.folder} && chown nobody {self.guest.folder}')
        self.vm.sh(['systemd-run', '--quiet', '--unit=greedy', '--collect', '-p', 'User=nobody',
                     '-p', 'StandardOutput=file:/run/greedy.log',
                     'python3', '/opt/greedy.py', self.guest.qmp_sock])
        self.vm.wait_for(lambda: self.vm.exec(['test', '-S', self.guest.qmp_sock]).rc == 0, 60)

    def got(self):
        """What descriptors it got."""
        lines = self.vm.sh('cat /run/greedy.log').splitlines()
        return [line for line in lines if line.startswith('got ')]

    def test_another_user_than_the_config_says_gets_nothing(self):
        self.listen()
        self.install(delay=0, access='fd', user='daemon')
        self.vm.plug('kbd', '1')
        line = self.line('not attached: ')
        self.assertIn('the process at /run/vm/windows/qmp-sock is not trusted: the socket belongs '
                      'to user 65534 and must belong to user 1', line)
        self.vm.settle()
        self.assertEqual(self.vm.sh('cat /run/greedy.log'), '')
        self.assertEqual(len(self.lines()), 1)
        # And to the one who is meant it goes.
        self.vm.unplug('1')
        self.install(delay=0, access='fd', user='nobody')
        self.vm.plug('kbd', '1')
        self.vm.wait_for(self.got, 120)
        self.assertRegex(self.got()[0], '^got /dev/bus/usb/001/')

    def test_a_folder_that_all_can_write_is_no_place_for_it(self):
        self.listen()
        self.vm.sh(f'chmod 1777 {self.guest.folder}')
        self.install(delay=0, access='fd')
        self.vm.plug('kbd', '1')
        self.assertIn('others can write to /run/vm/windows (mode 1777)', self.line('not attached: '))
        self.vm.settle()
        self.assertEqual(self.vm.sh('cat /run/greedy.log'), '')
        text = product.config({'windows': ['1']}, delay=0, access='fd', trust_socket_directory='true',
                              timeout=30)
        product.install(self.vm, self.binary, text)
        self.vm.unplug('1')
        self.vm.plug('kbd', '1')
        self.vm.wait_for(self.got, 120)
