"""Fits a line with the usual scientific libraries, says that it is ready, and waits."""
import signal
import sys

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.stats
from sklearn.linear_model import LinearRegression

points = np.arange(200.0).reshape(100, 2) ** 1.5
frame = pd.DataFrame({"value": points @ [1.0, 2.0], "group": ["a", "b"] * 50})
line = LinearRegression().fit(points, frame.value)
means = frame.groupby("group").value.mean().round().tolist()
print("ready", "@VERSION@", round(float(line.coef_.sum()), 3), means, scipy.stats.norm.cdf(0.0), flush=True)
# The first process of a container has no default handler that ends it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
while True:
    signal.pause()
