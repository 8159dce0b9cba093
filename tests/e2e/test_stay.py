"""What must stay with the host stays; what goes to the guest, the host does not touch before."""
import json
import os
import re

from product import devpaths
from test_attach import AttachCase

# Plugs in a row of the tests that look for what goes wrong only sometimes.
PLUGS = int(os.environ.get('HOTPLUGGER_TEST_PLUGS', 3))
# What the kernel says of a disk that it reads: its partition scan, and reads that are cut off.
READ = re.compile(r'\bsd[a-z]:|\[sd[a-z]\]|I/O error|offline', re.MULTILINE)


class StayCase(AttachCase):
    """Looks at the host's side."""

    def lines(self):
        """hotplugger's lines in the journal."""
        return self.vm.journal('-t', 'hotplugger').splitlines()

    def wait_line(self, text):
        """Waits until one of hotplugger's lines has that text."""
        self.vm.wait_for(lambda: any(text in line for line in self.lines()), 60, text)

    def wait_driver(self, interface, driver):
        self.vm.wait_for(lambda: self.vm.drivers().get(interface) == driver, 60,
                          f'{driver} at {interface}')

    def wait_disk(self):
        self.vm.wait_for(lambda: self.vm.exec('test -b /dev/sda').rc == 0, 60, '/dev/sda')
        self.vm.settle()


class StayTest(StayCase):
    """Exclusions, disks in use, machines that do not run."""

    guest_kind = 'seabios'

    def bind_again(self, port='1'):
        self.vm.sh(f'udevadm trigger --settle --action=bind /sys{devpaths(port)[1]}')

    def test_a_mounted_stick_stays_until_it_is_unmounted(self):
        self.guest.stop()
        self.install(delay=0)
        self.vm.plug('storage', '1')
        self.wait_disk()
        self.vm.sh('mkdir -p "/mnt/my stick"; mount /dev/sda "/mnt/my stick"')
        self.guest.start('seabios')
        self.bind_again()
        self.wait_line('not attached: the host uses its disk: sda is mounted at /mnt/my stick; '
                       'unmount it and run `hotplugger sync`')
        self.assertEqual(self.guest.ids(), [])
        self.assertEqual(self.vm.drivers()['2-1:1.0'], 'usb-storage')
        self.vm.sh('touch "/mnt/my stick/still there"; sync; umount "/mnt/my stick"')
        self.vm.unplug('1')
        self.vm.settle()
        self.vm.plug('storage', '1')
        self.wait_attached(('storage', '1'))

    def test_swap_and_a_mapped_device_count_too(self):
        self.guest.stop()
        self.install(delay=0)
        self.vm.plug('storage', '1')
        self.wait_disk()
        self.guest.start('seabios')
        self.vm.sh('mkswap -q /dev/sda 2>/dev/null || mkswap /dev/sda >/dev/null; swapon /dev/sda')
        self.bind_again()
        self.wait_line('the host uses its disk: sda is swap space; run swapoff')
        self.vm.sh('swapoff /dev/sda')
        if self.vm.exec('modprobe dm_mod && command -v dmsetup').rc != 0:
            self.skipTest('no device-mapper in the host VM; swap was told')
        self.vm.sh('mke2fs -q -F /dev/sda; dmsetup create rigmap --table '
                    '"0 $(blockdev --getsz /dev/sda) linear /dev/sda 0"; mount /dev/mapper/rigmap /mnt')
        self.bind_again()
        self.wait_line('sda is mounted at /mnt;')

    def test_excluded_devices_stay_and_others_go(self):
        for exclude in ('[0627:0001]', '[class: hid]'):
            with self.subTest(exclude=exclude):
                self.install(delay=0, exclude=exclude)
                self.vm.plug('kbd', '1')
                self.wait_driver('1-1:1.0', 'usbhid')
                self.vm.settle()
                self.assertEqual(self.guest.ids(), [])
                self.assertIn('the config excludes', self.lines()[-1])
                self.vm.unplug('1')
                self.vm.settle()
        self.vm.plug('storage', '1')
        self.wait_attached(('storage', '1'))

    def test_with_the_vm_down_the_stick_is_the_hosts(self):
        self.guest.stop()
        self.install(delay=1)
        self.vm.plug('storage', '1')
        self.wait_disk()
        self.assertEqual(self.vm.drivers(), {'2-1:1.0': 'usb-storage'})
        line, = self.lines()
        self.assertIn('stays with the host', line)
        self.assertNotIn('drivers', line)

    def test_what_is_not_attached_in_the_end_is_given_back(self):
        self.guest.start('seabios', controllers=['qemu-xhci,id=xhci0,p2=1,p3=1'],
                         extra=['-device', 'usb-kbd,port=1'])
        self.install(delay=0.5)
        for count in range(1, PLUGS + 1):
            with self.subTest(plug=count):
                self.vm.plug('storage', '1')
                self.vm.wait_for(lambda: sum(': not attached' in line for line in self.lines())
                                  == count, 60, 'the refusal')
                line = [line for line in self.lines() if ': not attached' in line][-1]
                self.assertIn('no free port', line)
                self.assertIn("; returned to the host's drivers", line)
                self.wait_driver('2-1:1.0', 'usb-storage')
                self.wait_disk()
                self.vm.unplug('1')
                self.vm.settle()

    def test_what_the_guest_lets_go_of_is_the_hosts_again(self):
        self.install(delay=1)
        for kind, interface, driver in (('storage', '2-1:1.0', 'usb-storage'),
                                        ('kbd', '1-1:1.0', 'usbhid')):
            with self.subTest(kind=kind):
                self.vm.plug(kind, '1')
                self.wait_attached((kind, '1'))
                self.guest.qmp('device_del', id=self.guest.ids()[0])
                self.wait_driver(interface, driver)
                self.vm.unplug('1')
                self.vm.settle()

    def test_hands_off_can_be_turned_off(self):
        self.install(delay=1, unbind_host_drivers='false')
        self.vm.plug('storage', '1')
        self.wait_driver('2-1:1.0', 'usb-storage')
        self.wait_attached(('storage', '1'))


class HandsOffTest(StayCase):
    """A stick that goes to a Linux guest is never read by the host."""

    def never_read(self, delay):
        self.install(delay=delay)
        self.vm.sh('dmesg --clear')
        for plug in range(PLUGS):
            with self.subTest(plug=plug):
                self.vm.plug('storage', '1')
                self.wait_attached(('storage', '1'))
                self.vm.wait_for(lambda: 'QEMU USB HARDDRIVE' in self.guest.lsusb().values(), 60)
                self.vm.unplug('1')
                self.wait_gone()
        dmesg = self.vm.sh('dmesg')
        self.assertFalse(READ.search(dmesg), dmesg)
        entries = [json.loads(line) for line in
                   self.vm.journal('-t', 'hotplugger', '-o', 'json').splitlines()]
        times = [int(entry['HOTPLUGGER_SINCE_PLUG_USEC']) / 1e6 for entry in entries
                 if entry['HOTPLUGGER_OUTCOME'] == 'attached']
        print(f'    delay {delay}: attached after '
              + ', '.join(f'{time:.2f}' for time in times) + ' s')
        self.assertEqual(len(times), PLUGS)

    def test_never_read_with_a_delay_of_0(self):
        self.never_read(0)

    def test_never_read_with_a_delay_of_1(self):
        self.never_read(1)


class UdisksTest(StayCase):
    """A desktop that mounts whatever it sees, as udisks and an automounter do."""

    guest_kind = 'libvirt'          # has udisks; libvirt's own part does not matter here
    MOUNTER = ('while sleep 0.05; do for disk in /dev/sd?; do test -b $disk && '
               'udisksctl mount --no-user-interaction -b $disk; done; done')

    def mounts(self):
        """How often the automounter has mounted something."""
        return self.vm.journal('-u', 'mounter').count('Mounted /dev/sd')

    def test_what_goes_to_the_guest_is_never_mounted(self):
        self.install(delay=1)
        self.vm.sh('systemctl start udisks2')
        self.vm.sh(['systemd-run', '--quiet', '--unit=mounter', 'bash', '-c', self.MOUNTER])
        self.vm.plug('storage', '1')
        self.vm.wait_for(lambda: self.mounts() == 1, 120, 'the automounter, with no guest')
        self.vm.unplug('1')
        self.vm.sh('umount --lazy --all-targets /dev/sda || true')
        self.vm.settle()
        self.guest.start('seabios')
        self.vm.sh('dmesg --clear')
        for plug in range(PLUGS):
            with self.subTest(plug=plug):
                self.vm.plug('storage', '1')
                self.wait_attached(('storage', '1'))
                self.vm.unplug('1')
                self.wait_gone()
        self.assertEqual(self.mounts(), 1)
        dmesg = self.vm.sh('dmesg')
        self.assertFalse(READ.search(dmesg), dmesg)
