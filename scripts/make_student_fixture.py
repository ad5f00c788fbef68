#!/usr/bin/env python3
"""Writes quantiles of Student's t distribution, for the test of crates/experiments/src/statistics.

Usage: python3 scripts/make_student_fixture.py > crates/experiments/src/statistics/student_quantiles.csv
Needs scipy.
"""

from scipy import stats

print("probability,freedom,quantile")
for freedom in [1, 2, 3, 4, 5, 7, 10, 19, 30, 100, 1000]:
    for probability in [0.6, 0.9, 0.95, 0.975, 0.995, 0.9995]:
        print(f"{probability},{freedom},{float(stats.t.ppf(probability, freedom))!r}")
