"""Shows a person that a long step goes on: its name, its seconds, its latest word.

On a terminal that is one line, rewritten each second; elsewhere a line every 15 s.
"""
import contextlib
import shutil
import sys
import threading
import time


@contextlib.contextmanager
def step(name, detail=lambda: ''):
    """Tells on standard error how long the block has been going on.  detail() gives the latest
    word on what it is doing; it is called from another thread."""
    show = _on_terminal if sys.stderr.isatty() else _in_log
    start, over = time.monotonic(), threading.Event()

    def beat():
        for number in range(sys.maxsize):
            show(name, time.monotonic() - start, number, detail)
            if over.wait(1):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    result = 'FAILED after'
    try:
        yield
        result = 'done in'
    finally:
        over.set()
        thread.join()
        end = '\r\x1b[K' if sys.stderr.isatty() else ''
        _write(f'{end}  {name}: {result} {time.monotonic() - start:.0f} s\n')


def last_line(path):
    """The last line of a growing log file: a detail for step()."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, file.seek(0, 2) - 1000))
            lines = file.read().decode(errors='replace').split('\n')
    except OSError:
        return ''
    return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _on_terminal(name, seconds, _, detail):
    line = f'  {name}: {seconds:3.0f} s  {detail()}'
    _write('\r' + line[:shutil.get_terminal_size().columns - 1] + '\x1b[K')


def _in_log(name, seconds, number, detail):
    if number == 0:
        _write(f'  {name} ...\n')
    elif number % 15 == 0:
        _write(f'  {name}: {seconds:.0f} s  {detail()}'.rstrip()[:160] + '\n')


def _write(text):
    sys.stderr.write(text)
    sys.stderr.flush()
