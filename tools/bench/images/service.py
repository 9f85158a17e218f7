"""A small service: reads a model, computes a report, says that it is ready, and waits for work."""
import sys

sys.path.insert(0, "/app")

import concurrent.futures
import decimal
import email.message
import http.client
import json
import logging.config
import signal
import sqlite3
import ssl
import threading
import urllib.request
import xml.etree.ElementTree

import numpy as np
import pandas as pd

from report import VERSION, summary

with open("/app/model.bin", "rb") as file:
    file.seek(1 << 20)
    weights = np.frombuffer(file.read(256 << 10), dtype=np.uint8).astype(np.float64)

frame = pd.DataFrame({"weight": weights, "group": np.arange(weights.size) % 7})
print("ready", VERSION, json.dumps(summary(frame)), flush=True)
# The first process of a container has no default handler that ends it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
while True:
    signal.pause()
