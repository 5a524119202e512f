"""What ``omniq doctor`` says about a file store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from omniq.errors import CorruptRecord
from omniq.storage import Finding
from omniq.storage.corrupt_records import finding, unreadable
from omniq_local.files.flow_records import gate_problems, read_flow
from omniq_local.files.maintenance import read_worker
from omniq_local.files.preparation import VERSION
from omniq_local.files.queues import Queue, check_queue
from omniq_local.files.schedules import bad_schedules
from omniq_local.files.settings import Settings
from omniq_local.files.transaction import Transaction
from omniq_local.files.tree import ASIDE, Tree, folder_mode

__all__ = ["check", "diagnose"]

LITTLE_SPACE = 256 * 2**20
FEW_INODES = 100_000
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "fuse.glusterfs", "ceph", "afs", "lustre"}
)
FLEETING = frozenset({"tmpfs", "ramfs"})


def diagnose(settings: Settings, transaction: Transaction) -> list[Finding]:
    """See :meth:`~omniq.storage.Storage.diagnose`."""
    return [
        *_store(settings),
        *_access(settings),
        *_aside(settings, transaction.folder.tree),
        *_mount(settings),
        *_space(settings),
        *_counts(transaction),
    ]


def check(limit: int, transaction: Transaction) -> list[Finding]:
    """Return what is wrong with records that are no tasks."""
    tree = transaction.folder.tree
    problems = [
        *bad_schedules(transaction),
        *unreadable(tree.names("workers"), lambda name: read_worker(tree, f"workers/{name}")),
        *unreadable(Queue.files(tree), lambda path: check_queue(tree, path)),
        *_bad_flows(tree),
        *(transaction.folder.limits().check() if transaction.folder.has_limits else ()),
    ]
    return [finding(problem) for problem in problems[:limit]]


def _bad_flows(tree: Tree) -> Iterator[CorruptRecord]:
    for path in tree.walk("flows/ids"):
        try:
            record = read_flow(tree, path)
        except CorruptRecord as problem:
            yield problem
        else:
            yield from () if record is None else gate_problems(tree, record)


def _store(settings: Settings) -> Iterator[Finding]:
    yield Finding.ok("store", f"{settings.base}, files of version {VERSION}")
    if settings.durable:
        yield Finding.ok("durability", "fsync=always: what was acknowledged survives the death of the machine")
    else:
        yield Finding.ok(
            "durability",
            "fsync=never: what was acknowledged survives the death of every process; if the machine dies, the last "
            "half minute may be lost (fsync=always prevents that)",
        )


def _access(settings: Settings) -> Iterator[Finding]:
    """Warn of others who can write to the store: they can do to it whatever they like."""
    for folder in (settings.root, settings.base):
        status = os.stat(folder)
        if status.st_uid not in (os.geteuid(), 0):
            yield Finding.warning(
                "access",
                f"{folder} belongs to user {status.st_uid}, who can change all that is in it; take one of your own",
            )
        others = status.st_mode & 0o022 & ~folder_mode(settings.mode)
        if others:
            yield Finding.warning(
                "access",
                f"{folder} can be written by others ({status.st_mode & 0o777:04o}); chmod go-w it, or have the "
                "URL say who may (?mode=0660)",
            )


def _aside(settings: Settings, tree: Tree) -> Iterator[Finding]:
    names = sorted(tree.names(ASIDE))
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        yield Finding.warning(
            "files moved aside",
            f"{len(names)} in {settings.base}/aside, torn or none of this store's: {shown}; look at them, then remove "
            "them",
        )


def _mount(settings: Settings) -> Iterator[Finding]:
    kind = file_system_of(settings.base)
    if kind in NETWORK:
        yield Finding.warning(
            "file system",
            f"{settings.root} is on {kind}, a network file system: locks and renames there are not to be relied on; "
            "use a local disk, or redis:// or postgresql:// for several machines",
        )
    elif kind in FLEETING:
        yield Finding.warning(
            "file system", f"{settings.root} is on {kind}, in memory: all is lost when the machine stops"
        )
    elif kind:
        yield Finding.ok("file system", kind)


def file_system_of(path: str, mounts: str = "/proc/mounts") -> str:
    """Return the kind of file system that a path is on; empty where the system does not say.

    :param mounts: the file that lists what is mounted.
    """
    path = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, point, each, *_ = line.split(" ")
                point = point.encode(errors="surrogateescape").decode("unicode_escape")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, each
    except (OSError, ValueError):
        return ""
    return kind


def _space(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.base).free
    if free < LITTLE_SPACE:
        yield Finding.warning("space", f"{free / 2**20:,.0f} MiB left on the file system of {settings.root}; free some")
    inodes = os.statvfs(settings.base)
    if inodes.f_files > 0 and inodes.f_favail < FEW_INODES:
        yield Finding.warning(
            "inodes", f"{inodes.f_favail:,} left on the file system of {settings.root}; each task takes one"
        )


def _counts(transaction: Transaction) -> Iterator[Finding]:
    total = sum(sum(transaction.queue(name).counts.values()) for name in transaction.folder.queue_names())
    yield Finding.ok("tasks", f"{total:,} in {len(transaction.folder.queue_names())} queues")
