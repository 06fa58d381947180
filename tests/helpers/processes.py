"""Work in several real processes of one torch.distributed group (gloo), each with one thread.

results = processes.run(2, work, arguments)   # a function of a test module, which each calls as work(rank, arguments)
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

_TIME = 300  # seconds; a rank that waits for one that has failed is ended then


def run(size, work, *arguments):
    """What ``work(rank, *arguments)`` returns in each process: plain values and tensors, in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(arguments, Path(folder) / "arguments")
        of_rank = [__file__, work.__code__.co_filename, work.__name__, folder, str(size)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([sys.executable, *of_rank, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        try:
            said = [rank.communicate(timeout=_TIME)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        failed = [f"rank {at}:\n{text}" for at, text in enumerate(said) if ranks[at].returncode]
        assert not failed, "\n".join(failed)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def _work(file, function, folder, size, rank):
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("work", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=int(size))
    arguments = torch.load(Path(folder) / "arguments", weights_only=False)
    torch.save(getattr(module, function)(int(rank), *arguments), Path(folder) / rank)
    dist.barrier()
    os._exit(0)  # gloo's threads have ended processes with an error on their way out


if __name__ == "__main__":
    _work(*sys.argv[1:])
