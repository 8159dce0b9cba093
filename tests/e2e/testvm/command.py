"""Runs commands of this machine (not of the host VM: that is agent.py)."""
import os
import subprocess

from .error import VmError

# mke2fs and depmod are in sbin, which `su` leaves out of PATH.
_ENV = dict(os.environ, PATH=os.environ.get('PATH', '/usr/bin:/bin') + ':/usr/sbin:/sbin')


def run(*argv, log=None, **env):
    """Runs a command that must succeed; returns its output, which goes to the file `log` if one
    is given.  env: more environment variables."""
    with open(log or os.devnull, 'w') as file:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, env={**_ENV, **env}, text=True,
                                  stdout=file if log else subprocess.PIPE,
                                  stderr=file if log else subprocess.PIPE)
        except OSError as error:
            raise VmError(f'{argv[0]}: {error.strerror}') from None
    if done.returncode != 0:
        why = f'see {log}' if log else done.stderr.strip()
        raise VmError(f'{argv[0]} failed with exit status {done.returncode}: {why}')
    return done.stdout or ''
