"""What the numbers are: how a metric is called, its unit, its decimals, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinbench.foundation.registry import Registry


@dataclass(frozen=True)
class Metric:
    """A kind of number. ``unit`` is empty for one without; ``digits`` counts decimals."""

    label: str
    unit: str = "%"
    digits: int = 1
    better: Literal["higher", "lower", "none"] = "higher"

    @property
    def is_percentage(self) -> bool:
        """Whether it is in percent, as all accuracies are."""
        return self.unit == "%"


METRICS = Registry[Metric]("metric")
"""Whatever is no percentage of which more is better."""

for _name, _metric in {
    "images_per_second": Metric("speed", "images/s", 0),
    "device_hours": Metric("pretraining", "device-hours", 3, "lower"),
    "peak_memory": Metric("peak memory", "MiB", 0, "lower"),
    "parameters": Metric("parameters", "M", 2, "none"),
    "energy": Metric("energy", "kWh", 4, "lower"),
    "effective_rank": Metric("effective rank", "", 1, "none"),
    "alignment": Metric("alignment", "", 3, "none"),
    "uniformity": Metric("uniformity", "", 2, "none"),
    "diagonal_mean": Metric("mean diagonal", "", 3, "none"),
    "off_diagonal_rms": Metric("off-diagonal RMS", "", 3, "none"),
    "feature_spread": Metric("feature spread", "", 3, "none"),
}.items():
    METRICS.add(_name, _metric)


def metric_of(name: str) -> Metric:
    """What is known of a metric: one that is not registered is a percentage of which more is better."""
    return METRICS[name] if name in METRICS else Metric(name)
