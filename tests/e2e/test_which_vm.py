"""A port that several virtual machines list, and what a person does to what is in it."""
from test_attach import AttachCase

MOVES = 20


class WhichVmTest(AttachCase):
    """Two guests list port 1, `windows` before `linux`."""

    guest_kind = 'seabios'

    def setUp(self):
        super().setUp()
        self.other = self.vm.guest('linux')
        self.install({'windows': ['1'], 'linux': ['1']}, delay=0)

    def wait_in(self, guest, kind='kbd'):
        """Waits until the device in port 1 is in that guest and in no other."""
        expected = self.wait_attached((kind, '1'), guest=guest)
        for neighbour in (self.guest, self.other):
            if neighbour is not guest and neighbour.running():
                self.assertEqual(neighbour.ids(), [])
        return expected

    def replug(self, kind='kbd'):
        self.vm.unplug('1')
        self.vm.settle()
        self.assertEqual(self.state_files(), [])
        self.vm.plug(kind, '1')

    def hotplugger(self, *arguments):
        """hotplugger by hand; its exit status and its line."""
        ended = self.vm.exec(['hotplugger', *arguments])
        return ended.rc, (ended.out + ended.err).strip()

    def test_the_first_that_runs_gets_it(self):
        self.vm.plug('kbd', '1')
        self.wait_in(self.guest)                    # the first alone
        self.other.start('seabios')
        self.replug()
        self.wait_in(self.guest)                    # both
        self.guest.signal('KILL')
        self.vm.wait_for(lambda: not self.guest.running())
        self.replug('storage')
        self.wait_in(self.other, 'storage')         # the first killed
        self.guest.start('seabios')
        self.vm.sh('udevadm trigger --settle --action=bind /sys/bus/usb/devices/2-1')
        self.wait_in(self.other, 'storage')         # it stays where it is
        self.replug()
        self.wait_in(self.guest)
        self.guest.stop()
        self.replug()
        self.wait_in(self.other)                    # the second alone

    def test_move_there_and_back(self):
        self.other.start('seabios')
        self.vm.plug('kbd', '1')
        self.wait_in(self.guest)
        guests = [self.other, self.guest]
        for count in range(MOVES):
            with self.subTest(move=count):
                status, line = self.hotplugger('move', '1-1')
                self.assertEqual(status, 0, line)
                self.assertIn('attached to guest port', line)
                self.assertEqual([len(guest.attached()) for guest in guests], [1, 0])
                self.wait_in(guests[0])
                guests.reverse()
        self.vm.unplug('1')
        self.wait_gone()
        self.assertEqual(self.other.ids(), [])

    def test_a_stick_moves_and_the_host_does_not_read_it(self):
        self.other.start('seabios')
        self.vm.plug('storage', '1')
        self.wait_in(self.guest, 'storage')
        self.vm.sh('dmesg --clear')
        for guest in (self.other, self.guest, self.other):
            status, line = self.hotplugger('move', '1-1')
            self.assertEqual(status, 0, line)
            self.wait_in(guest, 'storage')
        dmesg = self.vm.sh('dmesg')
        self.assertNotIn('[sda]', dmesg)
        self.assertNotIn('I/O error', dmesg)

    def test_detached_by_hand_it_stays_with_the_host_until_it_is_pulled(self):
        self.vm.plug('kbd', '1')
        self.wait_in(self.guest)
        status, line = self.hotplugger('detach', '1-1')
        self.assertEqual((status, self.guest.ids()), (0, []), line)
        self.vm.wait_for(lambda: self.vm.drivers().get('1-1:1.0') == 'usbhid', 60)
        self.vm.sh('udevadm trigger --settle --action=bind /sys/bus/usb/devices/1-1')
        self.assertEqual(self.guest.ids(), [])
        status, line = self.hotplugger('attach', '1-1')
        self.assertEqual(status, 0, line)
        self.wait_in(self.guest)
        self.hotplugger('detach', '1-1')
        self.replug()
        self.wait_in(self.guest)
