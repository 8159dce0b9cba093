"""Folders of built things, each kept until what it was made from changes."""
import contextlib
import fcntl
import hashlib
import os
import shutil

from .settings import BUILD_DIR


def digest(*parts):
    """A key made from strings, bytes, and lists of them."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update((part if isinstance(part, bytes) else repr(part).encode()) + b'\0')
    return sha.hexdigest()[:16]


def name(kind, flavour):
    """An entry's name: what it is, and of which flavour."""
    return f'{kind}-{flavour}' if flavour else kind


def entry(name, key, fill):
    """The folder `name`: the one that is there if it was made from the same key, else a new one
    that fill(folder) fills.  A half-filled folder is never seen under its name."""
    folder, new = f'{BUILD_DIR}/{name}', f'{BUILD_DIR}/{name}.new'
    os.makedirs(BUILD_DIR, exist_ok=True)
    with _locked(f'{folder}.lock'):
        if read_key(name) != key:
            shutil.rmtree(new, ignore_errors=True)
            os.makedirs(new)
            fill(new)
            with open(f'{new}/key', 'w') as file:
                file.write(key)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(new, folder)
    return folder


def read_key(name):
    """The key that the folder `name` was made from; '' where there is none."""
    try:
        with open(f'{BUILD_DIR}/{name}/key') as file:
            return file.read()
    except OSError:
        return ''


@contextlib.contextmanager
def _locked(path):
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
