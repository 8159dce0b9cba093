"""A new user's way from the program to a keyboard in the guest, as docs/first-port.md has it."""
import first_port
from case import Case


class FirstPortTest(Case):
    """The commands of the README's first port."""

    def test_the_first_port(self):
        text = first_port.transcript(self.vm, self.binary)
        self.assertIn('- pci-0000:00:14.0/usb2:1', text)
        self.assertIn('windows: port 1-1, QEMU USB Keyboard (0627:0001): attached', text)
        self.assertIn('unplugged, detached hotplugger-1-1-', text)
