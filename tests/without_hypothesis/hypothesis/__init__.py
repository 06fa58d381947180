"""Stands in for Hypothesis on a machine that lacks it (benchmarks/gpu.sh): its tests are skipped, the others run."""

from enum import Enum

import pytest

from hypothesis import strategies as strategies


class HealthCheck(Enum):
    too_slow = 1
    data_too_large = 2


class settings:  # noqa: N801 - Hypothesis's name
    def __init__(self, *_, **__):
        pass

    def __call__(self, test):
        return test

    @staticmethod
    def register_profile(*_, **__):
        pass

    @staticmethod
    def get_profile(_):
        return settings()


def given(*_, **__):
    def skipped(test):
        def no_case():
            pytest.skip("no hypothesis")

        no_case.__name__, no_case.pytestmark = test.__name__, getattr(test, "pytestmark", [])
        return no_case

    return skipped


example = given
