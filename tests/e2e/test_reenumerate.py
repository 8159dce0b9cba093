"""Another device in the same port at once: a mode switch, a firmware load, a quick hand."""
import os
import time

from test_attach import AttachCase

TIMES = int(os.environ.get('HOTPLUGGER_TEST_SWAPS', 6))


class ReenumerateTest(AttachCase):
    """Whenever the swap comes, the guest ends with the new device alone, under its own id."""

    guest_kind = 'seabios'

    def swap(self, kind):
        """The device in port 1 is another one, at one and the same moment of the host."""
        with self.vm.machine.paused():
            self.vm.unplug('1')
            self.vm.plug(kind, '1')

    def swap_again_and_again(self, delay, before_swap):
        """Where in the first device's way the swap comes is up to the machine; what must be true
        afterwards is the same everywhere."""
        self.install(delay=delay)
        for number in range(TIMES):
            first, second = ('kbd', 'mouse') if number % 2 else ('mouse', 'kbd')
            with self.subTest(number=number):
                self.vm.unplug_all()
                self.vm.plug(first, '1')
                old = self.devnum(first, '1')
                before_swap(first, number)
                self.swap(second)
                self.vm.wait_for(lambda: self.devnum(second, '1') != old, 60)
                attached = self.wait_attached((second, '1'))
                self.vm.settle()
                self.assertEqual(self.guest.ids(), sorted(attached))
                self.assertEqual(self.state_files(), ['port-1-1.json'])
                self.vm.unplug('1')
                self.wait_gone()

    def test_while_it_settles(self):
        self.swap_again_and_again(1, lambda _, number: time.sleep(0.2 + number * 0.4 / TIMES))

    def test_while_it_is_attached(self):
        self.swap_again_and_again(0, lambda _, number: time.sleep(number * 0.8 / TIMES))

    def test_after_it_was_attached(self):
        self.swap_again_and_again(0, lambda kind, _: self.wait_attached((kind, '1')))
