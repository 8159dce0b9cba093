"""The test VM's settings: what the environment asks for, and what this machine can do."""
import os

DIR = os.environ.get('HOTPLUGGER_TEST_DIR', '/var/tmp/hotplugger-e2e')
RAM = os.environ.get('HOTPLUGGER_TEST_RAM', '1536')            # MiB of the host VM
# The Debian release in the host VM. With -backports or -security, all packages that are there come from
# there.
SUITE = os.environ.get('HOTPLUGGER_TEST_SUITE', 'bookworm')
RELEASE = SUITE.removesuffix('-backports').removesuffix('-security')

BUILD_DIR = f'{DIR}/{SUITE}'
RUN_DIR = f'{DIR}/run'


def accelerator():
    """'kvm' where KVM can run an ordinary guest: /dev/kvm opens AND the CPU shows vmx or svm.

    Some sandboxes offer a /dev/kvm (kvm_pvm) that takes a stock kernel and then never prints a
    line, so that opening it proves nothing.
    """
    asked = os.environ.get('HOTPLUGGER_TEST_ACCEL')
    if asked:
        return asked
    try:
        os.close(os.open('/dev/kvm', os.O_RDWR))
    except OSError:
        return 'tcg'
    flags = cpu('flags').split()
    return 'kvm' if 'vmx' in flags or 'svm' in flags else 'tcg'


def cpu(field):
    """A field of /proc/cpuinfo, of the first CPU."""
    with open('/proc/cpuinfo') as lines:
        for line in lines:
            name, _, value = line.partition(':')
            if name.strip() == field:
                return value.strip()
    return ''
