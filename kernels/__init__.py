"""The GPU side of the ops: Triton kernels, one file per op, and the launches of those in csrc/cuda."""
