"""`sync`: what is plugged in and what a guest has, brought in line at any time."""
import os
import random
import statistics

import product
from test_attach import PRODUCTS, AttachCase

# Rounds of the storms.
ROUNDS = int(os.environ.get('HOTPLUGGER_TEST_ROUNDS', 6))
PORTS = [str(port) for port in range(1, 7)]


class SyncCase(AttachCase):
    """Looks at a guest after a `sync`."""

    guest_kind = 'none'

    def sync(self, *arguments, status=0):
        """Runs `hotplugger sync`; its lines."""
        ended = self.vm.exec(['hotplugger', 'sync', *arguments])
        self.assertEqual(ended.rc, status, ended.out + ended.err)
        return ended.out.splitlines()


class SyncTest(SyncCase):
    """One guest that comes and goes."""

    def test_what_was_plugged_before_the_guest_ran_is_attached(self):
        self.install({'windows': PORTS}, delay=0)
        plugged = [('kbd', '1'), ('mouse', '2.1'), ('storage', '3'), ('tablet', '4'),
                   ('audio', '5')]
        self.vm.plug('hub', '2')
        for kind, port in plugged:
            self.vm.plug(kind, port)
        self.vm.settle()
        self.guest.start('seabios')
        self.assertEqual(self.sync('windows', '--wait', '30')[-1],
                         'windows: 5 attached, 0 as before')
        self.wait_attached(*plugged)
        self.assertEqual(self.sync(), ['windows: 5 as before'])

        self.guest.signal('KILL')
        self.vm.wait_for(lambda: not self.guest.running())
        self.assertEqual(self.sync(), ['windows: not running'])
        self.guest.start('seabios')
        self.sync('--wait', '30')
        self.wait_attached(*plugged)

        self.guest.stop()
        self.vm.unplug('1')
        self.vm.unplug('4')
        self.vm.plug('serial', '6')
        self.vm.settle()
        self.guest.start('seabios')
        self.sync('--wait', '30')
        self.wait_attached(('mouse', '2.1'), ('storage', '3'), ('audio', '5'), ('serial', '6'))

    def test_events_that_were_missed(self):
        self.guest.start('seabios')
        self.install({'windows': PORTS}, delay=0)
        for kind, port in (('kbd', '1'), ('tablet', '2'), ('mouse', '3')):
            self.vm.plug(kind, port)
        self.wait_attached(('kbd', '1'), ('tablet', '2'), ('mouse', '3'))
        self.vm.sh('mv /etc/udev/rules.d/99-hotplugger.rules /tmp; udevadm control --reload')
        self.vm.unplug('1')
        self.vm.unplug('2')
        self.vm.plug('kbd', '2')
        self.vm.plug('storage', '4')
        self.vm.settle()
        self.sync()
        self.wait_attached(('kbd', '2'), ('mouse', '3'), ('storage', '4'))
        self.assertEqual(self.state_files(), ['port-1-2.json', 'port-1-3.json', 'port-2-4.json'])

    def test_pause_and_reset(self):
        self.install({'windows': PORTS}, delay=0)
        self.vm.plug('kbd', '1')
        self.vm.settle()
        self.guest.start('seabios')
        self.guest.qmp('stop')
        line, _ = self.sync()
        self.assertIn('the guest is paused and gets the device when it resumes', line)
        self.vm.plug('tablet', '2')
        self.vm.wait_for(lambda: len(self.guest.ids()) == 2, 60)
        self.assertEqual(self.sync(), ['windows: 2 as before'])
        self.assertEqual(self.guest.attached(), {})
        self.guest.qmp('cont')
        expected = self.wait_attached(('kbd', '1'), ('tablet', '2'))
        self.assertEqual(self.sync(), ['windows: 2 as before'])
        self.guest.qmp('system_reset')
        self.assertEqual(self.sync(), ['windows: 2 as before'])
        self.assertEqual(self.guest.attached(), expected)

    def storm(self, rounds, beside):
        """Plugs and pulls at random while `beside` runs; afterwards the guest has what is in the
        ports, each round."""
        self.install({'windows': PORTS}, delay=0)
        self.guest.start('seabios')
        dice = random.Random(1)
        plugged = {}
        for count in range(rounds):
            with self.subTest(round=count):
                self.vm.sh(f'systemd-run --quiet --unit=beside{count} bash -c "{beside}"')
                for port in dice.sample(PORTS, 3):
                    if plugged.pop(port, None):
                        self.vm.unplug(port)
                    else:
                        plugged[port] = dice.choice(sorted(PRODUCTS))
                        self.vm.plug(plugged[port], port)
                self.vm.wait_for(lambda: self.vm.exec(
                    f'systemctl is-active --quiet beside{count}').rc != 0, 120)
                self.vm.settle()
                self.wait_attached(*((kind, port) for port, kind in plugged.items()))
                ids = self.guest.ids()
                self.assertEqual(len(ids), len(plugged))

    def test_a_storm_of_plugs_beside_sync(self):
        self.storm(ROUNDS, 'for i in 1 2 3; do hotplugger sync; done')

    def test_a_storm_of_plugs_beside_two_syncs(self):
        self.storm(ROUNDS, 'for i in 1 2 3; do hotplugger sync & hotplugger sync; wait; done')

    def test_forty_devices_of_two_guests(self):
        hubs = {'windows': ['1', '2', '3'], 'linux': ['xhci2:1', 'xhci2:2', 'xhci2:3']}
        chains = {name: [f'{hub}.{port}' for hub in its_hubs for port in range(1, 8)][:20]
                  for name, its_hubs in hubs.items()}
        product.install(self.vm, self.binary, product.config(hubs, timeout=30, delay=0))
        for name, its_hubs in hubs.items():
            for hub in its_hubs:
                self.vm.plug('hub', hub)
            for chain in chains[name]:
                self.vm.plug('kbd', chain)
        self.vm.settle()
        guests = [self.vm.guest(name) for name in hubs]
        for guest in guests:
            guest.start('seabios', controllers=[f'qemu-xhci,id=xhci{number},p2=15,p3=15'
                                                for number in range(2)])
        together = self.vm.exec(['hotplugger', 'sync', '--wait', '60'])
        self.assertEqual(together.rc, 0, together.out + together.err)
        for guest in guests:
            self.assertEqual(len(guest.attached()), 20)
        idle = self.vm.exec(['hotplugger', 'sync'])
        self.assertEqual(idle.out.splitlines().count('linux: 20 as before'), 1)
        single = []
        for _ in range(5):
            self.vm.sh(['hotplugger', 'detach', '1-1.1'])
            single.append(self.vm.exec(['hotplugger', 'attach', '1-1.1']).seconds)
        print(f'    40 devices of two guests: {together.seconds:.2f} s; one by hand '
              f'{statistics.median(single):.2f} s; nothing to do {idle.seconds:.2f} s')
