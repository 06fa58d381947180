import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small train several times slower on two threads when the machine has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
