"""A disk that the host uses in any way stays with it, and is attached when the host has let go."""
from test_stay import StayCase


class DisksTest(StayCase):
    """One stick, used in all ways; the guest runs."""

    guest_kind = 'seabios'

    def setUp(self):
        super().setUp()
        self.guest.stop()
        self.install(delay=0)
        self.vm.plug('storage', '1')
        self.wait_disk()
        self.vm.sh('modprobe -a loop dm_mod md_mod raid1 ext4; mke2fs -q -F /dev/sda')
        self.guest.start('seabios')

    def stays(self, use, let_go, expected, works='true'):
        """With `use` in force the disk stays, the line says `expected`, and the host can still
        write (`works`).  After `let_go` sync attaches it."""
        self.vm.sh(use)
        ended = self.vm.exec('hotplugger sync')
        self.assertRegex(ended.out, f'not attached: the host uses its disk: {expected}')
        self.assertEqual(self.guest.ids(), [])
        self.assertEqual(self.vm.drivers()['2-1:1.0'], 'usb-storage')
        self.vm.sh(works)
        self.vm.sh(let_go)
        self.vm.sh('hotplugger sync')
        self.wait_attached(('storage', '1'))
        self.vm.sh('hotplugger detach 2-1')
        self.wait_disk()
        self.vm.sh('rm /tmp/hotplugger/port-2-1.json')

    def test_each_use_keeps_the_disk(self):
        write = 'echo x > /mnt/x; sync; [ "$(cat /mnt/x)" = x ]'
        for name, arguments in {
            'mount': ('mount /dev/sda /mnt', 'umount /mnt', 'sda is mounted at /mnt; unmount it',
                      write),
            'mounted loop device': ('losetup /dev/loop0 /dev/sda; mount /dev/loop0 /mnt',
                                    'umount /mnt; losetup -d /dev/loop0',
                                    'sda is mounted at /mnt;', write),
            'loop device': ('losetup /dev/loop0 /dev/sda', 'losetup -d /dev/loop0',
                            'the loop device loop0 is set up on sda;'),
            'open volume': (self.volume('used') + 'systemd-run --quiet --unit=user sh -c '
                            '"exec 3<>/dev/mapper/used; exec sleep 1000"; sleep 0.5',
                            'systemctl stop user; dmsetup remove used',
                            r'sleep \(process \d+\) has sda open|the volume used'),
            'mounted volume': (self.volume('used') + 'mount /dev/mapper/used /mnt',
                               'umount /mnt; dmsetup remove used', 'sda is mounted at /mnt;', write),
            'mount in another namespace': (
                'systemd-run --quiet --unit=user unshare -m sh -c '
                '"mount /dev/sda /mnt; exec sleep 1000"; sleep 1',
                'systemctl stop user',
                r'sda is mounted at /mnt in the mount namespace of sleep \(process \d+\);'),
            'swap': ('mkswap /dev/sda >/dev/null; swapon /dev/sda', 'swapoff /dev/sda',
                     'sda is swap space; run swapoff'),
            'raw open': ('systemd-run --quiet --unit=user sh -c "exec 3<>/dev/sda; '
                         'exec sleep 1000"; sleep 0.5', 'systemctl stop user',
                         r'sleep \(process \d+\) has sda open;',
                         'dd if=/dev/zero of=/dev/sda bs=4k count=1 conv=fsync 2>/dev/null'),
            'disk of another QEMU': (
                'systemd-run --quiet --unit=user qemu-system-x86_64 -nodefaults -display none '
                '-accel tcg -m 32 -S -drive file=/dev/sda,format=raw,if=virtio; sleep 4',
                'systemctl stop user', r'qemu-system-x86 \(process \d+\) has sda open;'),
        }.items():
            with self.subTest(use=name):
                self.stays(*arguments)

    def test_an_array_in_use_keeps_the_disk_and_an_idle_one_does_not(self):
        self.vm.sh('mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.0 '
                   '/dev/sda missing 2>/dev/null; mke2fs -q -F /dev/md0')
        self.stays('mount /dev/md0 /mnt', 'umount /mnt', 'sda is mounted at /mnt;',
                   'echo x > /mnt/x; sync')

    def test_an_idle_volume_does_not_keep_the_disk(self):
        self.vm.sh(self.volume('idle'))
        self.vm.sh('hotplugger sync')
        self.wait_attached(('storage', '1'))

    def test_a_volume_group_keeps_the_disk_only_in_use(self):
        self.vm.sh('pvcreate -qq -ff -y /dev/sda; vgcreate -qq stick /dev/sda; '
                   'lvcreate -qq -y -Zn -n data -L 4M stick; mke2fs -q -F /dev/stick/data')
        self.stays('mount /dev/stick/data /mnt', 'umount /mnt; vgchange -qq -an stick',
                   'sda is mounted at /mnt;', 'echo x > /mnt/x; sync')
        # The host activates it by itself when it sees the disk, and nobody opens it.
        self.vm.sh('dmsetup remove -f stick-data 2>/dev/null; vgchange -qq -aay stick; '
                   'test -b /dev/stick/data')
        self.vm.sh('hotplugger sync')
        self.wait_attached(('storage', '1'))

    def test_the_check_has_no_side_effects(self):
        self.vm.sh('hotplugger detach 2-1')
        self.wait_disk()
        self.guest.stop()
        with self.vm.monitor() as monitor:
            self.vm.sh('hotplugger attach 2-1; true')
            self.bind_again()
            self.vm.settle()
        changes = [event for event in monitor.events
                   if event.action == 'change' and '/block/' in event.devpath]
        self.assertEqual(changes, [])

    def test_a_paused_guest_gets_no_disk_that_the_host_still_serves(self):
        self.install(delay=0, unbind_host_drivers='false')
        self.guest.qmp('stop')
        ended = self.vm.exec('hotplugger sync')
        self.assertIn("the guest is paused, and the host's driver serves the disk", ended.out)
        self.assertEqual(self.guest.ids(), [])
        self.vm.sh('mount /dev/sda /mnt')
        self.guest.qmp('cont')
        self.vm.sh('echo x > /mnt/x; sync; umount /mnt')
        self.vm.sh('hotplugger sync')
        self.wait_attached(('storage', '1'))

    def test_a_disk_that_the_host_serves_goes_by_file_descriptor(self):
        # QEMU does not see the device at first; the disk stays claimed until it has it.
        self.guest.start('seabios', confined=True)
        self.install(delay=0, unbind_host_drivers='false')
        line = self.vm.sh('hotplugger sync').splitlines()[0]
        self.assertIn(', via file descriptor', line)
        self.wait_attached(('storage', '1'))

    def bind_again(self):
        self.vm.sh('udevadm trigger --settle --action=bind --parent-match=/sys/bus/usb/devices/2-1 '
                   '|| true')

    @staticmethod
    def volume(name):
        """A device-mapper device on the disk."""
        return (f'dmsetup create {name} --table "0 $(blockdev --getsz /dev/sda) linear /dev/sda 0"; ')
