"""The oracle for interoperation: kazoo's own recipes, driven by hand.

usage: kazoo_peer.py SERVERS CHROOT hold lock|rlock|wlock PATH IDENTIFIER
       kazoo_peer.py SERVERS CHROOT turns PATH LOG
       kazoo_peer.py SERVERS CHROOT contenders PATH
       kazoo_peer.py SERVERS CHROOT release NODE
"""

import os
import sys
import time

from kazoo.client import KazooClient

servers, chroot, action, *rest = sys.argv[1:]
client = KazooClient(hosts=servers + chroot)
client.start(timeout=30)
client.ensure_path("/")
recipes = {"lock": client.Lock, "rlock": client.ReadLock, "wlock": client.WriteLock}
if action == "hold":
    kind, path, identifier = rest
    lock = recipes[kind](path, identifier)
    # Persistent, as lockpick drives it.
    lock.acquire(ephemeral=False)
    print("ready", flush=True)
    sys.stdin.read()
    lock.release()
elif action == "turns":
    # A line for each turn, NUMBER KIND. In the log stands what the judge expects of a command.
    path, log = rest
    log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for line in sys.stdin:
        number, kind = line.split()
        lock = recipes[kind](path, "kazoo's")
        lock.acquire(ephemeral=False)
        node = f"{path}/{lock.node}"
        entry = f"{number} {kind} {node} {client.exists(node).czxid} {os.getpid()}\n"
        os.write(log, f"enter {entry}".encode())
        time.sleep(0.04)
        os.write(log, f"leave {entry}".encode())
        lock.release()
        print(f"left {number}", flush=True)
elif action == "contenders":
    print("\n".join(client.WriteLock(rest[0]).contenders()))
elif action == "release":
    client.delete(rest[0])
client.stop()
