"""Language models in a server: between the door, which protocols ask, and the engines in worker processes.

`wire.py` is what crosses to the worker; `choice.py` picks the engine for a model's files. `session.py` answers an
`Ask`: it renders, tokenises, asks the version for a stream of tokens, and makes events of them.
"""
