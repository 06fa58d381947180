"""The default device inside and outside of what the algebra makes."""

import threading

import pytest
import torch

from layercollapse._util.devices import default_device, on_cpu


def made():
    return torch.empty(1).device.type


def test_the_users_device_is_back_inside_and_behind():
    with torch.device("meta"):
        with on_cpu():
            assert made() == "cpu"
            with default_device():
                assert made() == "meta"
                with on_cpu():
                    assert made() == "cpu"
                assert made() == "meta"
            assert made() == "cpu"
        assert made() == "meta"
        with pytest.raises(RuntimeError, match="stop"), on_cpu(), default_device():
            raise RuntimeError("stop")
        assert made() == "meta"
    assert made() == "cpu"


def test_without_one_nothing_changes():
    with on_cpu(), default_device():
        assert made() == "cpu"
    with torch.device("meta"), default_device():  # outside of on_cpu
        assert made() == "meta"


def test_another_thread_has_its_own():
    seen = []
    with torch.device("meta"), on_cpu():

        def elsewhere():
            with default_device():
                seen.append(made())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == ["cpu"]
