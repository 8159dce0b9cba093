#!/usr/bin/python3
"""The test VM's agent inside the host VM: does one request per TCP connection (see testvm/agent.py).

Argument: the port.  Each do_* function takes the request's raw bytes and its values and returns
the answer's values, in 'data' its raw bytes.
"""
import collections
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
# A guest's sockets take one client at a time.
_locks = collections.defaultdict(threading.Lock)


def do_clocks(_):
    # both at the same moment: the reading during which the least time went by
    readings = [(time.monotonic(), time.time(), time.monotonic()) for _ in range(5)]
    before, realtime, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return {'monotonic': (before + after) / 2, 'realtime': realtime}


def do_set_time(_, realtime):
    time.clock_settime(time.CLOCK_REALTIME, realtime)
    return {}


def do_put(body, path, mode):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f'{path}.testvm-{threading.get_ident()}'
    with open(new, 'wb') as file:
        file.write(body)
    os.chmod(new, mode)
    os.rename(new, path)
    return {}


def do_get(_, path):
    with open(path, 'rb') as file:
        return {'data': file.read()}


def do_exec(body, command, limit, env):
    argv = ['/bin/bash', '-c', command] if isinstance(command, str) else command
    start, timed_out = time.monotonic(), False
    # Files, not pipes: what the command leaves in the background may hold them open for ever.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, \
            tempfile.TemporaryFile() as err:
        stdin.write(body)
        stdin.seek(0)
        process = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=err, cwd='/root',
                                   env={'HOME': '/root', 'LC_ALL': 'C.UTF-8', 'PATH': _PATH, **env},
                                   start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - start
        for file in (out, err):
            file.seek(0)
        return {'rc': process.returncode, 'timed_out': timed_out, 'seconds': seconds,
                'out': out.read().decode(errors='replace'),
                'err': err.read().decode(errors='replace')}


def do_qmp(_, path, command, arguments):
    with _locks[path], socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(60)
        qmp.connect(path)
        replies = qmp.makefile('rb')
        replies.readline()              # the greeting
        for number, message in enumerate(({'execute': 'qmp_capabilities'},
                                          {'execute': command, 'arguments': arguments})):
            qmp.sendall(json.dumps({**message, 'id': number}).encode() + b'\n')
            reply = {}
            # A QEMU may still send the reply to a client that has left.
            while reply.get('id') != number:
                line = replies.readline()
                reply = json.loads(line) if line else {'id': number, 'error': {'desc': 'closed'}}
    # 'error' is for a request that failed; this one was done.
    return {'fault': reply['error']['desc']} if 'error' in reply else {'return': reply['return']}


def do_guest_shell(_, path, line, limit):
    mark = f'BEGIN-{time.monotonic_ns()}'
    answer = re.compile(rf'^{mark}\n(.*?)^END-(\d+)\n'.encode(), re.DOTALL | re.MULTILINE)
    with _locks[path], socket.socket(socket.AF_UNIX) as shell:
        shell.connect(path)
        shell.sendall(f'echo {mark}; {line}\n'.encode())
        end, data, found = time.monotonic() + limit, b'', None
        while not found:
            shell.settimeout(max(0.01, end - time.monotonic()))
            received = shell.recv(65536)
            if not received:
                raise EOFError('the guest closed its shell')
            data += received.replace(b'\r', b'')
            found = answer.search(data)
    return {'rc': int(found[2]), 'text': found[1].decode(errors='replace')}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if not line:                    # a client that thought better of it
            return
        request = json.loads(line)
        body = self.rfile.read(request.pop('size'))
        try:
            answer = globals()['do_' + request.pop('op')](body, **request)
        except Exception as error:      # the client must hear of it, whatever it is
            answer = {'error': f'{type(error).__name__}: {error}'}
        data = answer.pop('data', b'')
        self.wfile.write(json.dumps({**answer, 'size': len(data)}).encode() + b'\n' + data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == '__main__':
    with Server(('0.0.0.0', int(sys.argv[1])), Handler) as server:
        server.serve_forever()
