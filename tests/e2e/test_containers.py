"""A guest whose QEMU runs in a container: podman, as root and as a user, the image being the host's own
root file system."""
from test_attach import AttachCase

USER = 'vmuser'
# Volumes and images in memory: an overlay of / cannot lie below /.
PODMAN = ['podman', '--root', '/run/containers-{user}', '--runroot', '/run/containers-{user}/run',
          '--cgroup-manager', 'cgroupfs', '--events-backend', 'file']
RUN = ['run', '--rm', '--replace', '--name', 'windows', '--network', 'none', '--cgroups', 'disabled',
       '--tmpfs', '/run:notmpcopyup', '--volume', '/run/vm/windows:/run/vm/windows', '--rootfs', '/mnt/rootfs:O']


class ContainersTest(AttachCase):
    """No privilege, device or capability is added to the container."""

    guest_kind = 'libvirt'

    def setUp(self):
        super().setUp()
        self.install({'windows': ['1', '2']}, delay=0)
        # Without what is mounted below it, which no overlay of a user may have.
        self.vm.sh('mkdir /mnt/rootfs; mount --bind / /mnt/rootfs; '
                   # Where the container has files of its own. A user could not make them.
                   'touch /etc/hosts /etc/hostname /etc/resolv.conf')

    def podman(self, user, *options):
        """The words that run a command in a container of that user's."""
        return [*[word.format(user=user) for word in PODMAN], *RUN[:-2], *options, *RUN[-2:]]

    def plug_replug_restart(self, start, kind='seabios'):
        start(kind)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        if kind == 'linux':
            self.vm.wait_for(lambda: 'QEMU USB Keyboard' in self.guest.lsusb().values(), 120,
                             'the keyboard in use by the guest')
        self.vm.unplug('1')
        self.wait_gone()
        self.vm.plug('storage', '2')
        self.wait_attached(('storage', '2'))
        self.guest.stop()
        start('seabios')
        self.vm.sh('hotplugger sync windows')
        self.wait_attached(('storage', '2'))
        self.assertIn('no problem found', self.vm.sh('hotplugger check'))

    def make_user(self):
        """A user who can run containers: with subordinate IDs, a runtime directory, and a file system
        for overlays, which in a user namespace need its extended attributes."""
        storage = PODMAN[2].format(user=USER)
        self.vm.sh(f'useradd -m -u 1000 {USER}; install -d -m 700 -o {USER} /run/user/1000; '
                   f'truncate -s 64M /var/tmp/storage; mke2fs -q -F -t ext4 /var/tmp/storage; '
                   f'mkdir {storage}; mount -o loop /var/tmp/storage {storage}; '
                   f'chown {USER} {storage}; grep {USER} /etc/subuid /etc/subgid')
        return ['env', 'XDG_RUNTIME_DIR=/run/user/1000', f'HOME=/home/{USER}']

    def test_container_of_root(self):
        self.plug_replug_restart(lambda kind: self.guest.start(kind, within=self.podman('root')),
                                 'linux')

    def test_container_of_a_user(self):
        within = [*self.make_user(), *self.podman(USER)]
        self.plug_replug_restart(lambda kind: self.guest.start(kind, user=USER, within=within),
                                 'linux')

    def test_another_user_of_the_container(self):
        """QEMU runs as a subordinate ID of the user's, who could replace its socket."""
        environment = self.make_user()
        podman = ' '.join(word.format(user=USER) for word in PODMAN)
        within = [*environment, 'sh', '-c',
                  f'{podman} unshare chmod 777 /run/vm/windows && exec "$@"', 'sh',
                  *self.podman(USER, '--user', '1001:1001', '--passwd=false')]
        self.guest.start('seabios', user=USER, within=within)
        self.vm.plug('kbd', '1')
        why = 'is not trusted: /run/vm/windows belongs to user 1000, so another user could replace'
        self.vm.wait_for(lambda: why in self.vm.journal('-t', 'hotplugger'), 120, 'the reason')
        self.assertEqual(self.guest.ids(), [])
        errors = self.findings('error')
        self.assertEqual(len(errors), 1, errors)
        # As it advises.
        self.vm.sh("sed -i 's/^    ports:/    trust_socket_directory: true\\n    ports:/' "
                   '/etc/hotplugger/config.yaml; hotplugger sync windows')
        self.wait_attached(('kbd', '1'))
        self.assertIn('no problem found', self.vm.sh('hotplugger check'))
