"""Somebody with full write access to the store, and nothing else: a process that knows sqlite3 and no OmniQ.

Reads statements as JSON from its input: ``[[sql, [parameter, …]], …]``, bytes as ``{"hex": "…"}``.
"""

from __future__ import annotations

import json
import sqlite3
import sys

connection = sqlite3.connect(sys.argv[1])
with connection:
    for sql, parameters in json.load(sys.stdin):
        values = [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in parameters]
        print(connection.execute(sql, values).rowcount)
connection.close()
