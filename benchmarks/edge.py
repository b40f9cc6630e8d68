"""Latency on one core, images one by one and 64 at once: resources to limit a budget by."""

from nni_blockswap.cost.resources.latency import Conditions, Latency

BATCH_1 = Latency(Conditions(threads=1, channels_last=True, batch_size=1), "batch_1")
BATCH_64 = Latency(Conditions(threads=1, channels_last=True, batch_size=64), "batch_64")
