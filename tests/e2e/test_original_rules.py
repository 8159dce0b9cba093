"""The two rule lines of the Python original, which know no `bind`, with hotplugger in its place."""
from test_attach import AttachCase

RULES = '''\
SUBSYSTEM=="usb", ACTION=="add", RUN+="/usr/bin/hotplugger"
SUBSYSTEM=="usb", ACTION=="remove", RUN+="/usr/bin/hotplugger"
'''


class OriginalRulesTest(AttachCase):
    """An interface's `add` attaches: the newest one, after `delay` of quiet."""

    def plug_with(self, delay):
        self.install(delay=delay)
        self.vm.rules(RULES, '99-hotplugger.rules')
        for kind in ('kbd', 'storage', 'audio'):
            with self.subTest(kind=kind):
                self.plug_and_pull(kind)
        lines = self.vm.journal('-t', 'hotplugger').splitlines()
        self.assertEqual(len(lines), 6, lines)

    def test_with_a_delay_of_1(self):
        self.plug_with(1)

    def test_with_a_delay_of_0(self):
        self.plug_with(0)
