"""Adapters: one framework each. The file's name is the adapter's name in config (`adapter = "onnx"`).

The contract is `core.servable.Adapter` and `Servable`. Each module has `plug`, its Adapter, and imports its framework
only inside `load`. Adapters run in a worker process (or, when `inline_safe`, in the front) and know nothing of the
runtime.
"""
