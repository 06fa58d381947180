"""For people with a trainer or a file format: transformers, Lightning, accelerate, torch.nn.utils.prune, ONNX."""
