"""A domain of libvirt's in the host VM (kind 'libvirt'): Debian's libvirtd, its default settings."""
import json
import shlex
import uuid

from .error import VmError
from .guest import UsbDevices
from .wait import wait_for

_XML = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='qemu-xhci' ports='15'/>
    <memballoon model='none'/>
  </devices>
{more}
</domain>
"""


class Domain(UsbDevices):
    """One domain; it has an xHCI of 15 ports, the bus usb.0."""

    def __init__(self, host, name='windows'):
        self.name = name
        # virsh takes a name for an ID or a UUID if there is one, so it gets this.
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        self._host = host

    def define(self, more=''):
        """Defines it.  more: what its XML has beside the usual, such as <qemu:commandline>."""
        self._host.put(_XML.format(name=self.name, uuid=self.uuid, more=more).encode(),
                       f'/root/{self.name}.xml')
        self.virsh('define', f'/root/{self.name}.xml')

    def start(self):
        """Starts it; the first start takes minutes under TCG, for libvirt asks QEMU for all that it
        can do."""
        self.virsh('start', self.uuid, timeout=600)
        wait_for(lambda: self.qmp('query-status')['running'], 120, f'the domain {self.name}')

    def destroy(self):
        """Ends it as if its plug were pulled."""
        self.virsh('destroy', self.uuid)

    def virsh(self, *arguments, timeout=120):
        """A command of virsh's; what it prints."""
        return self._host.sh(['virsh', '-q', '-c', 'qemu:///system', *arguments], timeout=timeout)

    def qmp(self, command, **arguments):
        """A QMP command to its QEMU, through libvirt; the return value."""
        text = json.dumps({'execute': command, 'arguments': arguments})
        reply = json.loads(self.virsh('qemu-monitor-command', self.uuid, text))
        if 'error' in reply:
            raise VmError(f"QMP {command}: {reply['error']['desc']}")
        return reply['return']

    def pid(self):
        """The process id of its QEMU."""
        return self._host.sh(f'cat /run/libvirt/qemu/{shlex.quote(self.name)}.pid').strip()

    def profile(self):
        """The AppArmor profile its QEMU is under: 'libvirt-... (enforce)'."""
        return self._host.sh(['cat', f'/proc/{self.pid()}/attr/current']).strip()
