VERSION = "@VERSION@"


def summary(frame):
    means = frame.groupby("group").weight.mean()
    return {"rows": len(frame), "mean": round(float(means.mean()), 3)}
