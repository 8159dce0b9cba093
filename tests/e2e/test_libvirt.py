"""libvirt as Debian installs it: AppArmor in force, a private /dev, its own user and cgroup."""
import product
from test_attach import AttachCase

# Where rules for the QEMUs of all domains go: Debian 13 has a directory for them.
APPARMOR = ('/etc/apparmor.d/abstractions/libvirt-qemu.d',
            '/etc/apparmor.d/local/abstractions/libvirt-qemu')
# As docs/libvirt.md has it: the directory belongs to the user that runs QEMU.
SOCKET = '/var/lib/libvirt/qemu/windows.qmp'
MONITOR = f"""  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{SOCKET},server=on,wait=off'/>
  </qemu:commandline>"""


class LibvirtCase(AttachCase):
    """A host VM with libvirtd."""

    guest_kind = 'libvirt'

    def setUp(self):
        super().setUp()
        self.guest = self.vm.domain()

    def install_with(self, ports=('1', '2'), **settings):
        """Installs hotplugger; settings are all keys of the machine but its ports."""
        lines = ['virtual_machines:', '  windows:', '    timeout: 60']
        lines += [f'    {key}: {value}' for key, value in settings.items()]
        lines += ['    ports:']
        lines += [f'      - {path}' for port in ports for path in product.devpaths(port)]
        product.install(self.vm, self.binary, '\n'.join(lines) + '\n')

    def define_with_monitor(self):
        """Defines the domain with a second monitor, as `hotplugger libvirt-xml` has it."""
        new, old = APPARMOR
        self.vm.sh(f'if grep -q libvirt-qemu.d /etc/apparmor.d/abstractions/libvirt-qemu; '
                    f'then mkdir -p {new}; echo "{SOCKET} rw," >> {new}/hotplugger; '
                    f'else echo "{SOCKET} rw," >> {old}; fi')
        self.guest.define(MONITOR)

    def assert_confined(self):
        """It is libvirt's own settings that are tested."""
        self.assertRegex(self.guest.profile(), r'^libvirt-[0-9a-f-]+ \(enforce\)$')
        inside = ['nsenter', '-t', self.guest.pid(), '-m', 'ls', '/dev/bus/usb']
        self.assertNotEqual(self.vm.exec(inside).rc, 0)
        user = self.vm.sh(['stat', '-c', '%U', f'/proc/{self.guest.pid()}']).strip()
        self.assertEqual(user, 'libvirt-qemu')

    def plug_and_pull_two(self):
        """A keyboard and a USB 3 stick, there and back."""
        self.vm.plug_together(('kbd', '1'), ('storage', '2'))
        self.wait_attached(('kbd', '1'), ('storage', '2'))
        self.vm.unplug_together('1', '2')
        self.wait_gone()

    def through_a_restart(self):
        """What is plugged comes back with `sync`, and the first plug after it works too."""
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        self.guest.destroy()
        self.vm.plug('storage', '2')
        self.vm.settle()
        self.guest.start()
        self.vm.sh(['hotplugger', 'sync', 'windows'])
        self.wait_attached(('kbd', '1'), ('storage', '2'))
        self.vm.unplug_together('1', '2')
        self.wait_gone()


class MonitorTest(LibvirtCase):
    """A second monitor."""

    def test_plug_pull_and_restart(self):
        self.define_with_monitor()
        self.guest.start()
        self.assert_confined()
        self.install_with(socket=SOCKET, delay=0, user='libvirt-qemu')
        self.plug_and_pull_two()
        self.through_a_restart()


class DomainTest(LibvirtCase):
    """No second monitor."""

    def test_plug_pull_and_restart(self):
        self.guest.define()
        self.guest.start()
        self.assert_confined()
        self.install_with(domain='windows', delay=0)
        self.plug_and_pull_two()
        self.through_a_restart()

    def test_a_domain_that_is_off_or_unknown_is_told(self):
        self.install_with(domain='windows', delay=0)
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: "libvirt domain windows is off" in
                          self.vm.journal('-t', 'hotplugger'), 60)


class HookTest(LibvirtCase):
    """Nothing is run by hand: libvirtd calls the hook that `install` has put."""

    def through_starts(self, times):
        """What is plugged in is in the domain whenever it starts, and the host's when it ends."""
        # It looks for hooks when it starts.
        self.vm.sh(['hotplugger', 'install', '--no-systemd'])
        self.vm.sh(['systemctl', 'restart', 'libvirtd'])
        self.vm.plug_together(('kbd', '1'), ('storage', '2'))
        self.vm.wait_for(lambda: self.vm.drivers() == {'1-1:1.0': 'usbhid',
                                                         '2-2:1.0': 'usb-storage'}, 60)
        for _ in range(times):
            self.guest.start()
            self.wait_attached(('kbd', '1'), ('storage', '2'))
            self.assert_confined()
            self.guest.destroy()
            self.vm.wait_for(lambda: self.vm.drivers() == {'1-1:1.0': 'usbhid',
                                                             '2-2:1.0': 'usb-storage'}, 60)

    def test_a_domain(self):
        self.guest.define()
        self.install_with(domain='windows', delay=0, return_to_host='true')
        self.through_starts(2)

    def test_a_second_monitor(self):
        self.define_with_monitor()
        self.install_with(socket=SOCKET, delay=0, user='libvirt-qemu', return_to_host='true')
        self.through_starts(1)


class NamesTest(LibvirtCase):
    """Domains whose names virsh takes for another's ID or UUID, and one that is renamed."""

    def plug_into(self, domain):
        """Configures the domain and plugs a keyboard, which it gets, and not `windows`."""
        self.install_with(domain=f"'{domain.name}'", delay=0)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'), guest=domain)
        self.assertEqual(self.guest.ids(), [])
        self.vm.unplug('1')
        self.wait_gone(guest=domain)

    def domain_findings(self):
        """What `check` says of the domain."""
        return [finding for finding in self.findings() if finding['code'].startswith('domain-')]

    def test_names(self):
        self.guest.define()
        self.guest.start()
        number = self.vm.domain(self.guest.virsh('domid', self.guest.uuid).strip())
        for domain in (number, self.vm.domain(self.guest.uuid)):
            domain.define()
            domain.start()
            self.plug_into(domain)
            domain.destroy()
        self.assertEqual(self.domain_findings(), [])
        number.virsh('domrename', number.uuid, 'debian')
        self.install_with(domain=f"'{number.name}'", delay=0)
        renamed, = self.domain_findings()
        self.assertEqual(renamed['code'], 'domain-unknown')
        self.assertIn('`debian`', renamed['what'])
        number.start()
        number.name = 'debian'
        self.plug_into(number)

    def test_saved_state(self):
        self.guest.define()
        self.guest.start()
        self.install_with(domain='windows', delay=0)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.sh('hotplugger detach --vm windows')
        self.guest.virsh('managedsave', 'windows', timeout=300)
        self.vm.sh('hotplugger sync windows')
        self.assertEqual(self.vm.drivers(), {'1-1:1.0': 'usbhid'})
        self.guest.start()
        self.vm.sh('hotplugger sync windows')
        self.wait_attached(('kbd', '1'))
