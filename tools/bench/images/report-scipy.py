import numpy as np
import scipy.linalg

VERSION = "@VERSION@"


def summary(frame):
    means = frame.groupby("group").weight.mean()
    line = scipy.linalg.lstsq(np.vander(means.index, 2), means.to_numpy())[0]
    return {"rows": len(frame), "mean": round(float(means.mean()), 3), "slope": round(float(line[0]), 3)}
