# SPDX-License-Identifier: Apache-2.0
"""What Hassani et al., Faster Neighborhood Attention (2024), measured on an A100: tables 5 to 8."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Images per second of the forward pass, by implementation; hours of 300 epochs of ImageNet-1K."""

    half: dict[str, float]
    single: dict[str, float]
    hours: dict[str, float]


_NAMES = ("naive", "gemm", "fused")


def _row(*figures: float) -> Published:
    columns = [dict(zip(_NAMES, figures[i : i + 3], strict=True)) for i in (0, 3, 6)[: len(figures) // 3]]
    half, single, hours = columns if len(columns) == 3 else [{}, columns[0], {}]
    return Published(half, single, hours)


FIGURES = {
    "nat_mini": _row(2975, 2660, 3742, 2416, 2481, 2658, 19.4, 20.4, 16.6),
    "dinat_mini": _row(2672, 2548, 3930, 2217, 2364, 2905, 20.4, 21.2, 17.4),
    "dinat_s_tiny": _row(2850, 2504, 3847, 2270, 2255, 2771, 21.1, 22.0, 17.4),
    "nat_tiny": _row(2167, 1939, 2772, 1739, 1802, 1942, 26.5, 28.2, 24.0),
    "dinat_tiny": _row(1910, 1845, 2909, 1591, 1706, 2123, 27.4, 28.5, 21.9),
    "dinat_s_small": _row(1800, 1571, 2445, 1403, 1393, 1717, 33.3, 33.2, 25.1),
    "nat_small": _row(1457, 1309, 1879, 1160, 1199, 1293, 39.2, 41.8, 33.7),
    "dinat_small": _row(1360, 1313, 2145, 1102, 1183, 1490, 38.0, 40.1, 30.8),
    "dinat_s_base": _row(1351, 1178, 1837, 1020, 1009, 1240, 45.4, 46.1, 32.6),
    "nat_base": _row(1110, 997, 1448, 867, 897, 966, 51.1, 54.6, 47.7),
    "dinat_base": _row(982, 950, 1517, 795, 851, 1059, 54.4, 56.0, 41.0),
    "ffhq_256": _row(36.7, 40.6, 45.5),
    "ffhq_1024": _row(8.2, 8.5, 11.5),
}
EPOCHS = 300
