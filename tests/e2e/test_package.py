"""The Debian package: installed, configured, used, upgraded, removed and purged; nothing is left."""
import os
import subprocess
import tempfile

import product
from case import Case
from test_attach import PRODUCTS

CONFIG = '/etc/hotplugger/config.yaml'
UNIT = 'hotplugger-sync@windows.path'
VIRTUAL_MACHINE = '''
virtual_machines:
  windows:
    socket: /run/vm/windows/qmp-sock
    timeout: 30
    ports:
'''
# What changes by itself (timers), or is dpkg's and apt's own.
PASSING = ('/run/systemd /run/udev /run/log /run/vm /var/backups /var/cache /var/lib/apt /var/lib/dpkg '
           '/var/lib/logrotate /var/lib/systemd /var/log /var/tmp').split()


class PackageTest(Case):
    """A machine that has never seen hotplugger."""

    guest_kind = 'seabios'

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        build = os.path.join(product.REPOSITORY, 'dist/deb/build')
        path = subprocess.run([build, folder.name], check=True, capture_output=True, text=True,
                              env={**os.environ, 'BINARY': self.binary}).stdout.strip()
        self.package = f'/tmp/{os.path.basename(path)}'
        self.vm.put(path, self.package)

    def test_installed_used_upgraded_removed_and_purged(self):
        before = self.files()
        self.apt('install', self.package)
        self.assertEqual(self.vm.sh('hotplugger status'), 'No virtual machine is configured.\n')
        self.assertIn('\nvirtual_machines:\n', self.vm.sh(['cat', CONFIG]), 'the example')
        self.configure()
        self.assertIn('/usr/lib/systemd/system/hotplugger-sync@.service',
                      self.vm.sh('hotplugger check -v'), 'check knows the package\'s unit')
        self.plug_and_pull()
        self.assertEqual(self.vm.sh('stat -c %a:%U /tmp/hotplugger').strip(), '700:root')

        with self.subTest('the journal explains an attached and a rejected device'):
            config = self.vm.get(CONFIG)
            option = b'    timeout: 30\n'
            self.vm.put(config.replace(option, option + b'    exclude: [class: hid]\n'), CONFIG)
            self.vm.plug('kbd', '1')
            self.vm.settle()
            self.vm.unplug('1')
            self.vm.settle()
            self.vm.put(config, CONFIG)
            journal = self.vm.sh('LC_ALL=C journalctl --no-pager -x -t hotplugger')
            for subject in 'was attached to a VM', 'stays with the host because of the policy':
                self.assertIn(f'-- Subject: A USB device {subject}\n', journal)

        with self.subTest('an upgrade leaves what the administrator has'):
            config = self.vm.get(CONFIG)
            self.apt('install', '--reinstall', self.package)
            self.assertEqual(self.vm.get(CONFIG), config)
            self.assertEqual(self.unit('is-active'), 'active')
            self.plug_and_pull()

        with self.subTest('removed, and installed again: the config is still there'):
            self.apt('remove', 'hotplugger')
            self.assertNotEqual(self.unit('is-active'), 'active')
            self.assertEqual(self.vm.get(CONFIG), config)
            self.vm.plug('kbd', '1')
            self.vm.settle()
            self.assertEqual(self.guest.ids(), [])
            self.apt('install', self.package)
            self.assertEqual(self.unit('is-active'), 'active')
            self.vm.unplug('1')
            self.vm.settle()
            self.plug_and_pull()

        self.apt('purge', 'hotplugger')
        self.assertEqual(sorted(self.files() ^ before), [])
        self.assertEqual(self.vm.sh('systemctl list-units --all --plain --no-legend "hotplugger*"'),
                         '')

    def test_purged_after_a_broken_config(self):
        before = self.files()
        self.apt('install', self.package)
        self.vm.put(b'virtual_machines: 5\n', CONFIG)
        said = self.apt('install', '--reinstall', self.package)
        self.assertIn('hotplugger check', said)
        self.apt('purge', 'hotplugger')
        self.assertEqual(sorted(self.files() ^ before), [])

    def test_in_a_chroot(self):
        """No udevd, no systemd, no /proc: as where an image of a disk is made."""
        self.vm.sh('mkdir /tmp/changed /tmp/root; mount -t tmpfs none /tmp/changed; '
                    'mkdir /tmp/changed/upper /tmp/changed/work; mount -t overlay none -o '
                    'lowerdir=/,upperdir=/tmp/changed/upper,workdir=/tmp/changed/work /tmp/root')
        self.vm.sh(f'cp {self.package} /tmp/root/package.deb')
        said = self.vm.exec('chroot /tmp/root dpkg -i /package.deb')
        self.assertEqual((said.rc, said.err), (0, ''), said.out)
        self.assertEqual(self.vm.sh('chroot /tmp/root hotplugger status'),
                         'No virtual machine is configured.\n')
        said = self.vm.exec('chroot /tmp/root dpkg --purge hotplugger')
        self.assertEqual((said.rc, said.err), (0, ''), said.out)
        self.assertEqual(self.vm.sh('find /tmp/root/etc /tmp/root/usr -name "*hotplugger*"'), '')

    def test_beside_what_was_installed_by_hand(self):
        """The package takes over from `make install`, whose rule would stand before its own."""
        self.vm.put(self.binary, '/usr/local/bin/hotplugger', 0o755)
        self.vm.sh('/usr/local/bin/hotplugger install')
        self.apt('install', self.package)
        self.assertIn('/usr/bin/hotplugger', self.vm.sh('grep RUN /etc/udev/rules.d/99-hotplugger.rules'))
        self.vm.sh('rm /usr/local/bin/hotplugger')
        self.configure()
        self.plug_and_pull()
        self.apt('purge', 'hotplugger')
        self.assertEqual(self.vm.sh('find /etc /usr /run /tmp -name "*hotplugger*" '
                                     f'! -path {self.package}'), '')

    def apt(self, *arguments):
        """There is no network: all that the package depends on is there already."""
        result = self.vm.exec(['apt-get', '-y', '-q', *arguments], timeout=300,
                               env={'DEBIAN_FRONTEND': 'noninteractive'})
        self.assertEqual(result.rc, 0, result.out + result.err)
        return result.out + result.err

    def configure(self):
        """As the README says."""
        self.vm.put(VIRTUAL_MACHINE.encode(), CONFIG)
        self.vm.plug('kbd', '1')
        self.vm.settle()
        self.vm.sh('hotplugger identify --plugged 1-1 --write windows')
        self.vm.unplug('1')
        self.vm.sh('hotplugger install')
        self.assertEqual(self.unit('is-active'), 'active')
        self.assertEqual(self.unit('is-enabled'), 'enabled')
        checked = self.vm.exec('hotplugger check')
        self.assertEqual(checked.rc, 0, checked.out + checked.err)
        self.assertNotIn('warning', checked.out)

    def plug_and_pull(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: list(self.guest.attached().values()) == [PRODUCTS['kbd']], 120)
        self.vm.unplug('1')
        self.vm.wait_for(lambda: not self.guest.ids(), 120)
        self.vm.settle()

    def unit(self, what):
        return self.vm.exec(['systemctl', what, UNIT]).out.strip()

    def files(self):
        """All that is there: kind, mode, path, and what a link points to or a file has in it."""
        prune = ' -o '.join(f'-path {path}' for path in PASSING)
        found = self.vm.sh(f'find /etc /usr /var /run /tmp /root /home /opt /srv \\( {prune} \\) '
                            '-prune -o -printf "%y %m %p %l\\n"; '
                            # There too, what has its name; but for what dpkg and apt keep of it.
                            'find /run /var ! -path "/var/lib/dpkg/*" ! -path "/var/cache/*" '
                            '-name "*hotplugger*"; '
                            'find /etc -type f -exec sha256sum {} +', timeout=300)
        return {line for line in found.splitlines() if '__pycache__' not in line}
