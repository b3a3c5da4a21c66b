"""The oracle for interoperation: kazoo's own recipes, driven by hand.

usage: kazoo_peer.py SERVERS CHROOT hold lock|rlock|wlock PATH IDENTIFIER
       kazoo_peer.py SERVERS CHROOT contenders PATH
       kazoo_peer.py SERVERS CHROOT release NODE
"""

import sys

from kazoo.client import KazooClient

servers, chroot, action, *rest = sys.argv[1:]
client = KazooClient(hosts=servers + chroot)
client.start(timeout=30)
client.ensure_path("/")
if action == "hold":
    kind, path, identifier = rest
    recipe = {"lock": client.Lock, "rlock": client.ReadLock, "wlock": client.WriteLock}[kind]
    lock = recipe(path, identifier)
    # Persistent, as lockpick drives it.
    lock.acquire(ephemeral=False)
    print("ready", flush=True)
    sys.stdin.read()
    lock.release()
elif action == "contenders":
    print("\n".join(client.WriteLock(rest[0]).contenders()))
elif action == "release":
    client.delete(rest[0])
client.stop()
