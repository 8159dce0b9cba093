"""The outer QEMU: the process that is the host VM, as seen from outside.

It starts, saves and ends that process and holds its QMP connection; what happens inside the VM
is agent.py's.  The folder given to Machine has all its files.
"""
import contextlib
import os
import re
import shutil
import signal
import subprocess

from .error import VmError
from .qmp import QMP
from .settings import RAM, accelerator
from .wait import wait_for

_TAIL = 3000                           # characters of a log that an error shows
AGENT_PORT = 7000                      # in the VM; see host/etc/systemd/system/testvm-agent.service
# At addresses that give stable DEVPATHs: xhci is /devices/pci0000:00/0000:00:14.0, its usb1 has
# the ports' high-speed half and usb2 their super-speed half, as with a real USB 3 port.
_CONTROLLERS = ('qemu-xhci,id=xhci,addr=0x14,p2=12,p3=12',
                'qemu-xhci,id=xhci2,addr=0x15,p2=8,p3=8')
_KERNEL_ARGS = ('console=ttyS0 root=/dev/vda rw panic=-1 oops=panic mitigations=off nokaslr '
                'tsc=reliable clocksource=tsc audit=0 net.ifnames=0 systemd.show_status=0')
_ACCELERATOR = {
    'kvm': ['-accel', 'kvm', '-cpu', 'host'],
    # svm: the guest in the VM then runs on nested KVM, which TCG emulates: a Linux guest boots
    # six times faster than by TCG in TCG.
    'tcg': ['-accel', 'tcg,thread=multi,tb-size=512',
            '-cpu', 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+rdrand,+svm,+npt'],
}


def hardware():
    """QEMU's arguments that a saved state depends on."""
    return ['-nodefaults', '-no-user-config', '-machine', 'q35', '-m', RAM, '-smp', '2',
            '-display', 'none', '-no-reboot', *_ACCELERATOR[accelerator()],
            '-append', _KERNEL_ARGS,
            '-device', 'virtio-blk-pci,drive=disk0,addr=0x2',
            '-device', 'virtio-net-pci,netdev=net0,addr=0x3,romfile=',
            '-device', 'virtio-rng-pci,addr=0x4',
            '-audiodev', 'none,id=snd0',
            *[arg for controller in _CONTROLLERS for arg in ('-device', controller)]]


class Machine:
    """One outer QEMU."""

    def __init__(self, folder):
        self.folder = folder
        self._process = None
        self._qmp = None

    def start(self, image, disk, state=None, writable=False, keep=False, devices=()):
        """Starts QEMU.  state: a file made by save(), to go on from there.  writable: what the VM
        writes goes to the disk file, else it is forgotten.  keep: it outlives this process.
        devices: more for QEMU's -device, without a state."""
        os.makedirs(self.folder)
        command = ['qemu-system-x86_64', *hardware(),
                   *[arg for device in devices for arg in ('-device', device)],
                   '-kernel', image.kernel, '-initrd', image.initrd,
                   '-drive', f'if=none,id=disk0,format=raw,file={disk},'
                             + ('cache=unsafe' if writable else 'snapshot=on'),
                   # no network but one port of ours, which QEMU chooses
                   '-netdev', 'user,id=net0,restrict=on,'
                              f'hostfwd=tcp:127.0.0.1:0-10.0.2.15:{AGENT_PORT}',
                   '-serial', f'file:{self.folder}/console.log',
                   '-qmp', f'unix:{self._socket},server=on,wait=off']
        if state:
            command += ['-incoming', f'exec:cat {state}']
        if not keep:
            # the kernel ends QEMU with us, however we end
            command = ['setpriv', '--pdeathsig', 'KILL', *command]
        with open(f'{self.folder}/qemu.log', 'w') as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log, start_new_session=True)
        with open(f'{self.folder}/pid.new', 'w') as file:
            file.write(str(self._process.pid))
        os.rename(f'{self.folder}/pid.new', f'{self.folder}/pid')
        self.wait_for(self._listens, 'QEMU to start')
        if state:                       # it was saved stopped, and comes back so
            self.wait_for(lambda: self.qmp.execute('query-status')['status'] != 'inmigrate',
                          'the snapshot to load')
            self.qmp.execute('cont')

    def wait_for(self, condition, what, timeout=600):
        """Waits for something that QEMU is to bring about; gives up when QEMU ends."""
        def check():
            if not self.alive():
                raise VmError(f'waited for {what}, but QEMU ended')
            return condition()
        try:
            return wait_for(check, timeout, what, every=0.03)
        except VmError as error:
            raise VmError(f'{error}; QEMU said: {self._tail("qemu.log")}') from None

    def save(self, path):
        """Stops the VM and saves its state; it can only be ended then.

        No guest may be running in it: TCG does not load a CPU that was inside nested KVM.
        """
        self.qmp.execute('stop')
        self.qmp.execute('migrate', uri=f'exec:cat > {path}')

        def done():
            status = self.qmp.execute('query-migrate').get('status')
            if status in ('failed', 'cancelled'):
                raise VmError('the VM could not be saved')
            return status == 'completed'
        self.wait_for(done, 'the saved state')

    def alive(self):
        """Whether QEMU runs, whoever started it."""
        if self._process:
            return self._process.poll() is None
        try:
            with open(f'/proc/{self._pid()}/cmdline') as file:
                return self._socket in file.read()
        except (OSError, ValueError):
            return False

    def died(self):
        """How QEMU ended, if it was started here and nobody asked it to end, else ''.  A signal is
        QEMU's own crash; status 0 is a panic of the VM's kernel, for QEMU ends in place of the
        reboot after it."""
        if not self._process:
            return ''
        with contextlib.suppress(VmError):
            self.qmp.execute('query-status')
            return ''
        try:
            status = self._process.wait(10)     # its sockets close before it is gone
        except subprocess.TimeoutExpired:
            return ''
        end = f'was ended by {signal.Signals(-status).name}' if status < 0 else f'exited with {status}'
        return (f"the host VM's QEMU {end}; it said: {self._tail('qemu.log')}\n"
                f"the end of the VM's console:\n{self._tail('console.log')}")

    def stop(self):
        """Ends QEMU, if it runs, and removes the folder."""
        self.close()
        if self.alive():
            os.kill(self._pid(), signal.SIGKILL)      # its disk is forgotten: nothing to lose
        with contextlib.suppress(VmError):
            wait_for(lambda: not self.alive(), 10, every=0.02)
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def qmp(self):
        """The QMP connection; another process gets none before close()."""
        if not self._qmp:
            if not self.alive():
                raise VmError('the host VM is not up')
            self._qmp = QMP(self._socket)
        return self._qmp

    def _listens(self):
        """Whether QEMU can be reached.  Its socket is there before anybody listens."""
        try:
            return self.qmp
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    def close(self):
        """Closes the QMP connection, if one is open."""
        if self._qmp:
            self._qmp.close()
            self._qmp = None

    @contextlib.contextmanager
    def paused(self):
        """Within the block the VM stands still, its clock too."""
        self.qmp.execute('stop')
        try:
            yield
        finally:
            self.qmp.execute('cont')

    def agent_port(self):
        """The port of 127.0.0.1 that leads to the agent in the VM."""
        table = self.qmp.execute('human-monitor-command', **{'command-line': 'info usernet'})
        return int(re.search(r'HOST_FORWARD]\s+\d+\s+127\.0\.0\.1\s+(\d+)', table)[1])

    def _tail(self, name):
        with open(f'{self.folder}/{name}', errors='replace') as log:
            return log.read()[-_TAIL:].strip()

    @property
    def _socket(self):
        return f'{self.folder}/qmp'

    def _pid(self):
        with open(f'{self.folder}/pid') as file:
            return int(file.read())
